//! What `runwire dev` says when all is up: where, as whom, and what to paste.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

use super::engine::ANSWER;
use super::seed::{Environment, Seeded};

/// How long the public token is good for, in seconds.
const TOKEN_LIFE: u64 = 24 * 3600;

/// What the text depends on.
pub(super) struct Welcome<'a> {
    pub(super) address: SocketAddr,
    pub(super) admin_address: SocketAddr,
    pub(super) database_url: &'a str,
    pub(super) kept: Option<&'a Path>,
}

impl Welcome<'_> {
    pub(super) fn text(&self, seeded: &Seeded) -> Result<String, jsonwebtoken::errors::Error> {
        let (url, admin) = (base_url(self.address), base_url(self.admin_address));
        let (key, run, batch) = (seeded.production.secret_key, seeded.run, seeded.batch);
        let stream = ANSWER;
        let token = public_token(&seeded.production)?;
        let database = self.database_url;
        let end = match self.kept {
            None => "Ctrl-C stops everything and leaves nothing behind.".to_owned(),
            Some(kept) => {
                format!("Ctrl-C stops everything. The database stays in {}", kept.display())
            }
        };
        Ok(format!(
            r#"Runwire is up, over a Postgres of its own in which simulated runs come and go.

  URL           {url}
  Secret key    {key}
  Public token  {token}
                (read:runs and read:tags, for 24 hours)
  Metrics       {admin}/metrics
  Database      {database}

A run as it is now:

curl -N -H 'Authorization: Bearer {key}' '{url}/realtime/v1/runs/{run}?offset=-1&live=true'

The same run, and then each change of it as it commits:

next='offset=-1'; while next=$(curl -fsSN -H 'Authorization: Bearer {key}' -o /dev/stderr -w 'offset=%header{{electric-offset}}&handle=%header{{electric-handle}}&live=true' "{url}/realtime/v1/runs/{run}?$next"); do echo; done

A stream of that run, on which it answers word by word:

curl -N -H 'Authorization: Bearer {key}' '{url}/realtime/v1/streams/{run}/{stream}'

The run with the SDK, in an empty directory:

npm install @trigger.dev/sdk
node --input-type=module -e '
import {{ configure, runs }} from "@trigger.dev/sdk";
configure({{ baseURL: "{url}", accessToken: "{token}" }});
for await (const run of runs.subscribeToRun("{run}")) {{
  console.log(run.id, run.status, run.metadata);
}}'

That run, a tag and a batch on one page, with React's hooks, once `npm ci && npm run dev` runs in examples/react:

http://127.0.0.1:5173/?baseURL={url}&run={run}&stream={stream}&tag=user:1&batch={batch}&accessToken={token}

{end}
"#
        ))
    }
}

/// Where a client on this machine connects.
fn base_url(address: SocketAddr) -> String {
    format!("http://{}", reached_at(address))
}

/// The loopback in place of every interface.
pub(super) fn reached_at(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// A token as the SDK's `auth.createPublicToken` signs it.
fn public_token(environment: &Environment) -> Result<String, jsonwebtoken::errors::Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let claims = json!({
        "sub": environment.id, "pub": true, "scopes": ["read:runs", "read:tags"],
        "iss": "https://id.trigger.dev", "aud": "https://api.trigger.dev",
        "iat": now, "exp": now + TOKEN_LIFE,
    });
    let key = EncodingKey::from_secret(environment.secret_key.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_every_interface_is_reached_at_the_loopback() {
        let url = |address: &str| base_url(address.parse().unwrap());
        assert_eq!(url("0.0.0.0:3040"), "http://127.0.0.1:3040");
        assert_eq!(url("[::]:3040"), "http://[::1]:3040");
        assert_eq!(url("127.0.0.1:1"), "http://127.0.0.1:1");
    }
}
