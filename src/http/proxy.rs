//! Whose request it is, where proxies stand between the client and us.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::HeaderMap;
use axum::http::header::FORWARDED;
use ipnet::IpNet;

/// Hops that are looked at before the last one is taken for the client.
const MOST_HOPS: usize = 32;

/// The header in which proxies add who connected to them. Only one is believed: a proxy that
/// writes one passes on the other as the client made it up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ProxyHeader {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// The proxies that are believed.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// Where they are. A header that comes from elsewhere is not looked at.
    pub networks: Vec<IpNet>,
    /// What they write.
    pub header: ProxyHeader,
}

impl Proxies {
    /// The client's address: that of the last hop, counted from us, which is no proxy of ours. What
    /// stands before it in the header is hearsay.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.trusts(client) {
            return client;
        }
        let hops: &mut dyn Iterator<Item = &str> = match self.header {
            ProxyHeader::XForwardedFor => &mut fields(headers, "x-forwarded-for"),
            ProxyHeader::Forwarded => &mut fields(headers, FORWARDED.as_str()).map(|element| {
                let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
                let named = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
                named.map(|(_, value)| value.trim().trim_matches('"')).next().unwrap_or_default()
            }),
        };
        for hop in hops.take(MOST_HOPS) {
            // One that a proxy does not name: the proxy is all that is known.
            let Some(address) = address(hop) else { break };
            client = address;
            if !self.trusts(client) {
                break;
            }
        }
        client
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }
}

/// The comma-separated fields of a header that may come several times, the last one first.
fn fields<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().rev();
    // What is no ASCII names no address, and ends the search like any other nonsense.
    values.flat_map(|value| value.to_str().unwrap_or("?").rsplit(',').map(str::trim))
}

/// An address with or without a port; one of IPv6 may stand in brackets.
fn address(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let address = bare.parse().ok().or_else(|| Some(hop.parse::<SocketAddr>().ok()?.ip()));
    address.map(|address| address.to_canonical())
}

/// Who shares a rate: an IPv4 address, or the /64 that one customer has of IPv6.
pub fn site(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(header: ProxyHeader) -> Proxies {
        let networks = ["10.0.0.0/8", "fd00::/8", "127.0.0.1/32"];
        Proxies { networks: networks.map(|text| text.parse().unwrap()).to_vec(), header }
    }

    fn client(proxies: &Proxies, peer: &str, name: &'static str, values: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, value.parse().unwrap());
        }
        proxies.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_no_proxy_of_ours() {
        let ours = proxies(ProxyHeader::XForwardedFor);
        let xff = |peer, values: &[&str]| client(&ours, peer, "x-forwarded-for", values);
        for (peer, values, wanted) in [
            ("192.0.2.1", &["198.51.100.7"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["1.1.1.1, 198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["1.1.1.1, 198.51.100.7 ,10.2.3.4"], "198.51.100.7"),
            ("10.0.0.1", &["198.51.100.7", "10.2.3.4"], "198.51.100.7"),
            ("10.0.0.1", &["10.9.9.9, 10.2.3.4"], "10.9.9.9"),
            ("::ffff:10.0.0.1", &["::ffff:198.51.100.7"], "198.51.100.7"),
            ("fd00::1", &["2001:db8::5"], "2001:db8::5"),
            ("127.0.0.1", &["198.51.100.7:4711"], "198.51.100.7"),
            ("127.0.0.1", &["[2001:db8::5]:4711"], "2001:db8::5"),
            ("127.0.0.1", &["1.1.1.1, unknown, 10.0.0.3"], "10.0.0.3"),
            ("127.0.0.1", &["1.1.1.1, "], "127.0.0.1"),
        ] {
            assert_eq!(xff(peer, values), wanted, "{peer} {values:?}");
        }
        let forged = client(&ours, "10.0.0.1", "forwarded", &["for=1.1.1.1"]);
        assert_eq!(forged, "10.0.0.1", "the other header is not believed");
        let none = Proxies::default();
        assert_eq!(client(&none, "10.0.0.1", "x-forwarded-for", &["1.1.1.1"]), "10.0.0.1");
    }

    #[test]
    fn forwarded_is_read_as_its_rfc_says() {
        let ours = proxies(ProxyHeader::Forwarded);
        for (value, wanted) in [
            ("for=198.51.100.7;proto=https;by=10.0.0.1", "198.51.100.7"),
            ("For=\"[2001:db8::5]:4711\"", "2001:db8::5"),
            ("for=1.1.1.1, proto=http;FOR=198.51.100.7 , for=10.0.0.2", "198.51.100.7"),
            ("for=1.1.1.1, for=_hidden", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
        ] {
            assert_eq!(client(&ours, "10.0.0.1", "forwarded", &[value]), wanted, "{value}");
        }
    }

    #[test]
    fn hops_that_cost_more_than_they_are_worth_are_not_read() {
        let ours = proxies(ProxyHeader::XForwardedFor);
        let many = format!("198.51.100.7,{}10.0.0.9", "10.0.0.8,".repeat(1_000));
        assert_eq!(client(&ours, "10.0.0.1", "x-forwarded-for", &[&many]), "10.0.0.8");
    }

    #[test]
    fn an_ipv6_customer_is_one_however_many_addresses_they_use() {
        let of = |text: &str| site(text.parse().unwrap()).to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(of("198.51.100.7"), "198.51.100.7");
    }
}
