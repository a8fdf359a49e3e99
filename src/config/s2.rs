//! Settings of an S2 elsewhere, by the names that Trigger.dev has for them
//! (`streams-and-sessions.md`, 11).

use clap::Args;

use super::SettingError;
use crate::streams::{RemoteSettings, Token};

/// Where streams are kept, if not in this process.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "An S2 elsewhere")]
pub struct RemoteArgs {
    /// An S2 that keeps the streams instead of this process, such as http://s2/v1. Writers are sent there
    #[arg(long, env = "REALTIME_STREAMS_S2_ENDPOINT", value_name = "URL")]
    pub s2_endpoint: Option<String>,
    /// What opens that S2. Without an endpoint it is s2.dev's
    #[arg(
        long,
        env = "REALTIME_STREAMS_S2_ACCESS_TOKEN",
        value_name = "TEXT",
        hide_env_values = true
    )]
    pub s2_access_token: Option<String>,
    /// `true` for an S2 that issues no tokens, as s2-lite: writers get the one above, or none that means
    /// anything
    #[arg(
        long,
        env = "REALTIME_STREAMS_S2_SKIP_ACCESS_TOKENS",
        default_value = "false",
        value_name = "TEXT"
    )]
    pub s2_skip_access_tokens: String,
    /// Where s2.dev issues tokens
    #[arg(
        long,
        env = "REALTIME_STREAMS_S2_ACCOUNT_URL",
        default_value = "https://a.s2.dev/v1",
        value_name = "URL"
    )]
    pub s2_account_url: String,
    /// Where s2.dev has a basin
    #[arg(
        long,
        env = "REALTIME_STREAMS_S2_BASIN_URL",
        default_value = "https://{basin}.b.s2.dev/v1",
        value_name = "URL"
    )]
    pub s2_basin_url: String,
}

impl RemoteArgs {
    /// The S2 that is meant, if one is, or what is wrong with a setting.
    pub fn settings(&self) -> Result<Option<RemoteSettings>, SettingError> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (endpoint, token) = (given(&self.s2_endpoint), given(&self.s2_access_token));
        if endpoint.is_none() && token.is_none() {
            return Ok(None);
        }
        let skip = self.s2_skip_access_tokens == "true";
        if token.is_none() && !skip {
            let problem = "is not set. For an S2 that asks for none set REALTIME_STREAMS_S2_SKIP_ACCESS_TOKENS=true";
            let setting = "REALTIME_STREAMS_S2_ACCESS_TOKEN";
            return Err(SettingError { setting, problem: problem.to_owned() });
        }
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            let problem = "holds what no token does".to_owned();
            return Err(SettingError { setting: "REALTIME_STREAMS_S2_ACCESS_TOKEN", problem });
        }
        let account = url("REALTIME_STREAMS_S2_ACCOUNT_URL", &self.s2_account_url)?;
        let (account, basin) = match &endpoint {
            None => (account, url("REALTIME_STREAMS_S2_BASIN_URL", &self.s2_basin_url)?),
            Some(endpoint) => {
                let url = url("REALTIME_STREAMS_S2_ENDPOINT", endpoint)?;
                // What is different for each basin is no account's.
                (if url.contains("{basin}") { account } else { url.clone() }, url)
            }
        };
        let names_basin = endpoint.is_some();
        Ok(Some(RemoteSettings {
            account,
            basin,
            names_basin,
            endpoint,
            token: token.map(Token),
            skip,
        }))
    }
}

/// The URL without a slash at its end, and with the path that S2's clients add where there is none.
fn url(setting: &'static str, text: &str) -> Result<String, SettingError> {
    let url = text.trim_end_matches('/');
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let rest = rest.filter(|rest| !rest.is_empty());
    let rest = rest.filter(|rest| rest.bytes().all(|byte| byte.is_ascii_graphic()));
    let Some(rest) = rest.filter(|rest| !rest.contains(['?', '#', '@'])) else {
        let problem = "is no URL such as http://s2/v1".to_owned();
        return Err(SettingError { setting, problem });
    };
    Ok(if rest.contains('/') { url.to_owned() } else { format!("{url}/v1") })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        remote: RemoteArgs,
    }

    fn settings(arguments: &[&str]) -> Result<Option<RemoteSettings>, String> {
        let cli = Cli::parse_from(std::iter::once(&"test").chain(arguments));
        cli.remote.settings().map_err(|error| error.to_string())
    }

    fn places(arguments: &[&str]) -> (String, String, bool) {
        let settings = settings(arguments).unwrap().unwrap();
        (settings.account, settings.basin, settings.names_basin)
    }

    #[test]
    fn streams_stay_here_unless_something_names_another_s2() {
        assert!(settings(&[]).unwrap().is_none());
        assert!(settings(&["--s2-endpoint=", "--s2-access-token="]).unwrap().is_none());
    }

    #[test]
    fn an_endpoint_is_all_there_is_and_a_token_alone_means_s2_dev() {
        let skip = "--s2-skip-access-tokens=true";
        let of = |account: &str, basin: &str, named| (account.to_owned(), basin.to_owned(), named);
        let here = "http://s2/v1";
        assert_eq!(places(&["--s2-endpoint=http://s2/v1", skip]), of(here, here, true));
        assert_eq!(places(&["--s2-endpoint=http://s2", skip]), of(here, here, true));
        let path = "https://x.example:8/s2/v1";
        assert_eq!(places(&[&format!("--s2-endpoint={path}/"), skip]), of(path, path, true));
        let (account, basin) = ("https://a.s2.dev/v1", "https://{basin}.b.s2.dev/v1");
        assert_eq!(places(&["--s2-access-token=t"]), of(account, basin, false));
        let cell = "https://{basin}.cell.example/v1";
        assert_eq!(places(&[&format!("--s2-endpoint={cell}"), skip]), of(account, cell, true));
    }

    #[test]
    fn what_cannot_work_is_said_by_its_name_and_without_the_token() {
        let refused = |arguments: &[&str]| settings(arguments).unwrap_err();
        let text = refused(&["--s2-endpoint=http://s2/v1"]);
        assert!(text.starts_with("REALTIME_STREAMS_S2_ACCESS_TOKEN: is not set"), "{text}");
        assert!(text.contains("REALTIME_STREAMS_S2_SKIP_ACCESS_TOKENS=true"), "{text}");
        let text = refused(&["--s2-access-token=hush\nhush"]);
        assert!(text.starts_with("REALTIME_STREAMS_S2_ACCESS_TOKEN: ") && !text.contains("hush"));
        for url in ["s2/v1", "http://", "ftp://s2", "http://s2/v1?x", "http://a:b@s2", "http://s 2"]
        {
            let text = refused(&[&format!("--s2-endpoint={url}"), "--s2-access-token=t"]);
            assert!(text.starts_with("REALTIME_STREAMS_S2_ENDPOINT: "), "{url}: {text}");
        }
        let token = settings(&["--s2-access-token=hush"]).unwrap();
        assert!(!format!("{token:?}").contains("hush"));
    }
}
