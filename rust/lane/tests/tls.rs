//! The same over TLS, with the certificate made here and a client that checks it.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use flx_lane::server::Limits;
use parts::{Client, HANDSHAKE, Lane, PATIENCE, SOON, frame, said, serve_with};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};

type Secure = StreamOwned<ClientConnection, TcpStream>;

fn serve(limits: Limits) -> (Lane, impl Fn(&Lane, &[&str]) -> Secure) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der()).into();
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = ["h2", "http/1.1"].map(|it| it.as_bytes().to_vec()).to_vec();
    let lane = serve_with(limits, Some(Arc::new(config)));
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connect = move |lane: &Lane, speaks: &[&str]| {
        let mut config = config.clone();
        config.alpn_protocols = speaks.iter().map(|it| it.as_bytes().to_vec()).collect();
        let session = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        StreamOwned::new(session, lane.client().0)
    };
    (lane, connect)
}

#[test]
fn http1_is_served_whether_it_is_named_or_not() {
    let (lane, connect) = serve(Limits::default());
    for speaks in [&["http/1.1"][..], &[]] {
        let mut client = Client(connect(&lane, speaks));
        client.post("/echo", &vec![b'x'; 100_000]);
        assert_eq!(100_000, client.answer().body.len());
        assert_eq!(speaks.first().map(|it| it.as_bytes()), client.0.conn.alpn_protocol());
        client.get("/held");
        let call = lane.next(|event| match event {
            parts::Event::Request(_, peer, _, call) => peer.is_secure.then_some(call),
            _ => None,
        });
        assert!(call.answer(said("held")));
        assert_eq!("held", client.answer().text());
    }
}

#[test]
fn http2_is_what_a_client_gets_that_can_do_both() {
    let (lane, connect) = serve(Limits::default());
    let mut client = connect(&lane, &["http/1.1", "h2"]);
    while client.conn.is_handshaking() {
        client.conn.complete_io(&mut client.sock).unwrap();
    }
    assert_eq!(Some(&b"h2"[..]), client.conn.alpn_protocol());
    // Settings on both sides, and GET of `/now` in the smallest words: indexed fields of RFC 7541, appendix A.
    let mut client = Client(client);
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    client.send(b"\0\0\x0b\x01\x05\0\0\0\x01\x82\x87\x04\x04/now\x41\x01a");
    let mut found = Vec::new();
    while !found.ends_with(b"now") {
        let mut byte = [0];
        std::io::Read::read_exact(&mut client.0, &mut byte).unwrap();
        found.push(byte[0]);
    }
}

#[test]
fn a_socket_opens_over_tls() {
    let (lane, connect) = serve(Limits::default());
    let mut client = Client(connect(&lane, &["http/1.1"]));
    client.send(HANDSHAKE.as_bytes());
    let open = lane.handshake().accept(Vec::new());
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(flx_lane::call::Room::Taken, open.text("hello"));
    assert_eq!(Some((0x81, b"hello".to_vec())), client.frame());
    client.send(&frame(0x88, &[]));
    assert_eq!(Some((0x88, Vec::new())), client.frame());
    // With a farewell of TLS too: the end was not cut off.
    assert_eq!(None, client.frame());
}

#[test]
fn an_answer_over_tls_arrives_though_the_body_was_too_large() {
    let (lane, connect) = serve(Limits::default());
    for _ in 0..5 {
        let mut client = Client(connect(&lane, &["http/1.1"]));
        client.post("/small", &vec![b'x'; 300_000]);
        assert_eq!("TooLarge", client.answer().text());
    }
}

#[test]
fn who_speaks_no_tls_is_sent_away() {
    let (lane, connect) = serve(Limits { head: SOON, ..Limits::default() });
    let mut plain = lane.client();
    plain.get("/now");
    let mut silent = lane.client();
    let mut slow = lane.client();
    slow.send(b"\x16");
    for client in [&mut plain, &mut silent, &mut slow] {
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut client.0, &mut rest);
        assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
    }
    // Who has spoken TLS and says nothing in it.
    let mut idle = connect(&lane, &["h2"]);
    while idle.conn.is_handshaking() {
        idle.conn.complete_io(&mut idle.sock).unwrap();
    }
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut idle, &mut rest);
    assert!(Client(idle).is_cut());
}

#[test]
fn a_stop_does_not_wait_for_who_has_not_spoken_tls_yet() {
    let (mut lane, connect) = serve(Limits::default());
    let mut silent = lane.client();
    let mut idle = connect(&lane, &["http/1.1"]);
    while idle.conn.is_handshaking() {
        idle.conn.complete_io(&mut idle.sock).unwrap();
    }
    assert!(lane.stop(PATIENCE) < Duration::from_secs(2));
    assert!(silent.is_cut() && Client(idle).is_cut());
}
