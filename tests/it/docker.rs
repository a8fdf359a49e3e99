//! `docker/`, as far as it can be looked at without a container engine: its parts fit each other, the
//! program, and a real Postgres.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use runwire::dev::{Options, Postgres};
use serde_json::Value;

use crate::support::cluster::database_in;
use crate::support::program::{self, Serving};
use crate::support::scratch::Scratch;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// A stage's instructions, each as its name and the rest of its line, options among it.
struct Stage {
    from: String,
    instructions: Vec<(String, String)>,
}

impl Stage {
    fn all(&self, name: &str) -> Vec<&str> {
        let of = |(each, _): &&(String, String)| each == name;
        self.instructions.iter().filter(of).map(|(_, rest)| rest.as_str()).collect()
    }

    fn one(&self, name: &str) -> &str {
        let all = self.all(name);
        let [one] = all[..] else { panic!("{name}: {all:?}") };
        one
    }

    fn at(&self, name: &str) -> usize {
        self.instructions.iter().position(|(each, _)| each == name).expect(name)
    }

    /// What its `ENV` sets.
    fn environment(&self) -> Vec<(&str, &str)> {
        let set = self.all("ENV").into_iter().flat_map(str::split_whitespace);
        set.map(|pair| pair.split_once('=').unwrap()).collect()
    }
}

fn stages() -> [Stage; 2] {
    let text = read("docker/Dockerfile");
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let text = lines.join("\n").replace("\\\n", " ");
    let mut stages: Vec<Stage> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let (name, rest) = line.split_once(' ').unwrap();
        match (name, stages.last_mut()) {
            ("FROM", _) => {
                stages.push(Stage { from: rest.to_owned(), instructions: Vec::new() });
            }
            (_, Some(stage)) => stage.instructions.push((name.to_owned(), rest.trim().to_owned())),
            _ => panic!("{line} before any FROM"),
        }
    }
    stages.try_into().ok().expect("two stages")
}

fn compose() -> Value {
    serde_yaml::from_str(&read("docker/compose.yaml")).unwrap()
}

/// The variables that `runwire serve --help` documents.
async fn documented() -> BTreeSet<String> {
    let help = program::run(&["serve", "--help"]).await.stdout;
    let names = help.split("[env: ").skip(1);
    let end = |rest: &str| rest.find([']', '=']).unwrap();
    names.map(|rest| rest[..end(rest)].to_owned()).collect()
}

/// The port of an address that everybody reaches.
fn port(of: &[(&str, &str)], name: &str) -> u16 {
    let (_, address) = of.iter().find(|(each, _)| *each == name).expect(name);
    let address: SocketAddr = address.parse().unwrap();
    assert_eq!(address.ip(), Ipv4Addr::UNSPECIFIED, "{name}");
    address.port()
}

#[test]
fn what_the_build_copies_is_there_and_enough_for_its_cargo_command() {
    let [build, last] = stages();
    let ignored = read(".dockerignore");
    let let_in: Vec<_> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignored.lines().any(|line| line == "*"));
    let copied = Scratch::new("docker-build");
    std::fs::create_dir(&copied.0).unwrap();
    let mut sources = Vec::new();
    for line in build.all("COPY") {
        let mut words: Vec<_> = line.split_whitespace().collect();
        let to = words.pop().unwrap();
        for from in words {
            assert!(let_in.contains(&from), ".dockerignore keeps {from} out");
            let to = if to == "./" { copied.0.clone() } else { copied.0.join(to) };
            let from_path = root().join(from);
            let to = if from_path.is_dir() { to } else { to.join(from) };
            let done = Command::new("cp").arg("-rT").args([&from_path, &to]).status();
            assert!(done.unwrap().success(), "{from}");
            sources.push(from.to_owned());
        }
    }
    assert_eq!(let_in.len(), sources.len(), "no more is sent than what is copied");
    assert!(sources.iter().any(|from| from == ".cargo"), "it has the allocator's settings");

    // Every name of the build's command, as cargo itself reads them from what was copied.
    let run = build.one("RUN");
    let words: Vec<_> = run.split_whitespace().collect();
    let after = |word: &str| words[words.iter().position(|each| *each == word).expect(word) + 1];
    // Packages for other platforms need not be on this machine.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version=1"])
        .args(["--filter-platform", &platform])
        .current_dir(&copied.0)
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let of_name = |package: &&Value| package["name"] == after("--package");
    let package = packages.iter().find(of_name).expect("its package");
    let targets = package["targets"].as_array().unwrap();
    let program = |target: &&Value| target["kind"][0] == "bin" && target["name"] == after("--bin");
    let program = targets.iter().find(program).expect("its program");
    assert!(Path::new(program["src_path"].as_str().unwrap()).is_file());
    assert!(words.contains(&"--release") && words.contains(&"--locked"));

    // The program is where cargo puts it, and where the last stage takes it from.
    assert_eq!(after("cp"), format!("target/release/{}", after("--bin")));
    let (_, built) = run.rsplit_once(' ').unwrap();
    let taken = format!("--from=build {built} {built}");
    assert_eq!(last.one("COPY"), taken);
    assert!(built.starts_with("/usr/local/bin/") && build.at("COPY") < build.at("RUN"));
    assert!(build.from.ends_with(" AS build"));
    // The same C library on both sides.
    let suite = |from: &str| ["bookworm", "trixie"].into_iter().find(|suite| from.contains(suite));
    assert_eq!(suite(&build.from), suite(&last.from));
    let version = build.from.strip_prefix("rust:1.").unwrap();
    let version: u32 = version[..version.find('-').unwrap()].parse().unwrap();
    let least = package["rust_version"].as_str().unwrap().strip_prefix("1.").unwrap();
    assert!(version >= least.parse().unwrap());
}

#[tokio::test]
async fn the_image_runs_as_nobody_special_and_is_healthy_where_it_listens() {
    let [_, last] = stages();
    let environment = last.environment();
    let documented = documented().await;
    for (name, _) in &environment {
        assert!(documented.contains(*name), "{name} is no setting");
    }
    let ports = ["RUNWIRE_LISTEN", "RUNWIRE_ADMIN_LISTEN"].map(|name| port(&environment, name));
    let exposed: Vec<u16> =
        last.one("EXPOSE").split(' ').map(|port| port.parse().unwrap()).collect();
    assert_eq!(exposed, ports);

    // Everything that needs root comes before.
    let user = last.one("USER");
    assert!(last.at("USER") > last.instructions.iter().rposition(|(i, _)| i == "RUN").unwrap());
    let prepared = last.all("RUN");
    let made = prepared.concat();
    assert!(made.contains("useradd ") && made.contains(&format!(" {user} ")), "{made}");
    let data = last.one("VOLUME");
    assert!(environment.contains(&("RUNWIRE_DATA_DIR", data)));
    assert!(made.contains(&format!("install --directory --owner={user} --mode=0700 {data}")));

    let check = last.one("HEALTHCHECK");
    let (_, command) = check.split_once("CMD ").unwrap();
    let command: Vec<String> = serde_json::from_str(command).unwrap();
    assert!(made.contains("apt-get install") && made.contains(&format!(" {} ", command[0])));
    let url = url::Url::parse(command.last().unwrap()).unwrap();
    assert!(ports.contains(&url.port().unwrap()));
    let entry: Vec<String> = serde_json::from_str(last.one("ENTRYPOINT")).unwrap();
    let arguments: Vec<String> = serde_json::from_str(last.one("CMD")).unwrap();
    assert_eq!((entry, arguments), (vec!["runwire".to_owned()], vec!["serve".to_owned()]));
}

#[tokio::test]
async fn the_compose_file_gives_the_image_what_it_needs_and_opens_no_more_than_clients_need() {
    let [_, last] = stages();
    let environment = last.environment();
    let compose = compose();
    let runwire = &compose["services"]["runwire"];
    let dockerfile = root().join("docker").join(runwire["build"]["context"].as_str().unwrap());
    assert!(dockerfile.join(runwire["build"]["dockerfile"].as_str().unwrap()).is_file());
    assert_eq!(dockerfile.canonicalize().unwrap(), root().canonicalize().unwrap());

    let documented = documented().await;
    for (name, _) in runwire["environment"].as_object().unwrap() {
        assert!(documented.contains(name), "{name} is no setting");
    }
    let [public, admin] =
        ["RUNWIRE_LISTEN", "RUNWIRE_ADMIN_LISTEN"].map(|name| port(&environment, name));
    let ports: Vec<_> = strings(&runwire["ports"]);
    assert_eq!(ports, [format!("{public}:{public}"), format!("127.0.0.1:{admin}:{admin}")]);
    let volume = format!("runwire:{}", last.one("VOLUME"));
    assert_eq!(strings(&runwire["volumes"]), [volume]);

    let postgres = &compose["services"]["postgres"];
    let url = runwire["environment"]["DATABASE_URL"].as_str().unwrap();
    let url = url::Url::parse(&url.replace("${POSTGRES_PASSWORD}", "secret")).unwrap();
    assert_eq!((url.host_str(), url.username()), (Some("postgres"), "postgres"));
    let database = postgres["environment"]["POSTGRES_DB"].as_str().unwrap();
    assert_eq!(url.path(), format!("/{database}"));
    assert_eq!(postgres["ports"], Value::Null, "nobody else needs it");
    let volumes = [&runwire["volumes"], &postgres["volumes"]].map(strings);
    for volume in volumes.concat() {
        let (name, _) = volume.split_once(':').unwrap();
        assert!(compose["volumes"].get(name).is_some(), "{name}");
    }
    assert_eq!(runwire["depends_on"]["postgres"]["condition"], "service_healthy");
}

#[tokio::test]
async fn a_postgres_with_the_settings_of_the_compose_file_has_a_permanent_slot() {
    let compose = compose();
    let command = strings(&compose["services"]["postgres"]["command"]);
    assert_eq!(command[0], "postgres");
    let settings = command[1..].chunks(2).map(|pair| {
        assert_eq!(pair[0], "-c");
        let (name, value) = pair[1].split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    });
    let settings = settings.collect();
    let postgres = Postgres::start(Options { settings, ..Options::default() }).await.unwrap();
    let database = database_in(&postgres).await;
    let serving = Serving::start_ready(&database.url, &[]).await;
    let slot = "SELECT temporary FROM pg_replication_slots WHERE slot_name = 'runwire'";
    let temporary: bool = sqlx::query_scalar(slot).fetch_one(&database.pool).await.unwrap();
    assert!(!temporary, "a restart would cost each client its offset");
    assert_eq!(serving.admin("/readyz").await.lines().next(), Some("ready"));
    serving.stop().await;
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|each| each.as_str().unwrap().to_owned()).collect()
}
