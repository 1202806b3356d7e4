//! The key a client address is counted under.
//!
//! Rules: IPv4 whole; IPv6 by its /64, since one customer commonly holds one; an IPv4-mapped address is the IPv4 address it
//! contains, so that two spellings are one client; a zone (`%eth0`) does not count. Which address is the client's is the
//! gateway's decision (trusted proxies), not this module's.

use std::net::IpAddr;

/// Replaces `key` with the key of `address`. What is no IP address (a socket's path, nothing) is its own key.
pub fn write_key(address: &str, key: &mut Vec<u8>) {
    key.clear();
    let bare = address.split_once('%').map_or(address, |(bare, _)| bare);
    match bare.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(IpAddr::V4(ip)) => {
            key.push(4);
            key.extend_from_slice(&ip.octets());
        }
        Ok(IpAddr::V6(ip)) => {
            key.push(6);
            key.extend_from_slice(&ip.octets()[..8]);
        }
        Err(_) => {
            key.push(0);
            key.extend_from_slice(address.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::write_key;

    fn key(address: &str) -> Vec<u8> {
        let mut key = b"left over".to_vec();
        write_key(address, &mut key);
        key
    }

    #[test]
    fn two_spellings_of_a_client_are_one_key() {
        for (one, other) in [
            ("10.0.0.1", "::ffff:10.0.0.1"),
            ("10.0.0.1", "::ffff:a00:1"),
            ("2001:db8::1", "2001:0db8:0:0:ffff::2"),
            ("fe80::1", "fe80::2%eth0"),
        ] {
            assert_eq!(key(one), key(other));
        }
    }

    #[test]
    fn different_clients_are_different_keys() {
        let keys = ["10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8:0:1::1", "", "unix:", "4"].map(key);
        assert!((0..keys.len()).all(|i| !keys[..i].contains(&keys[i])));
    }
}
