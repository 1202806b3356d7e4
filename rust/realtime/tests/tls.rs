//! The same over TLS, with the certificate made here and a client that checks it.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod parts;

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, mpsc};

use flx_realtime::listener::{Clock, Limits, Listener};
use flx_realtime::service::Closed;
use flx_realtime::tls;
use parts::{Client, LARGE, Told, close, closed, frame, head, limits, next};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

type Secure = Client<StreamOwned<ClientConnection, TcpStream>>;

fn listen(told: &mpsc::Sender<Told>, limits: Limits) -> (Listener, impl Fn(&Listener) -> Secure) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let config = tls::server(cert.pem().as_bytes(), signing_key.serialize_pem().as_bytes(), &["http/1.1"]).unwrap();
    let address = ([127, 0, 0, 1], 0).into();
    let listener = Listener::start(address, 1, limits, Some(&config), Clock::default(), parts::service(told)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let config = Arc::new(config);
    let connect = move |listener: &Listener| {
        let session = ClientConnection::new(Arc::clone(&config), "localhost".try_into().unwrap()).unwrap();
        let mut client = Client(StreamOwned::new(session, Client::tcp(listener).0));
        client.send(head("/").as_bytes());
        assert!(client.http().starts_with("HTTP/1.1 101 "));
        client
    };
    (listener, connect)
}

#[test]
fn frames_of_any_size_pass_both_ways() {
    let (told, hears) = mpsc::channel();
    let (listener, connect) = listen(&told, limits());
    let mut clients: Vec<_> = (0..3).map(|_| connect(&listener)).collect();
    for length in [0, 1, 125, 126, 16_384, 16_385, 65_535, 65_536] {
        for client in &mut clients {
            client.echo(&"x".repeat(length));
        }
    }
    let mut client = clients.remove(0);
    client.send(&close(1000, b""));
    assert_eq!(vec![(0x88, vec![0x03, 0xe8])], client.frames());
    assert_eq!(Closed::ByClient(1000), closed(&hears));
}

#[test]
fn a_full_socket_loses_nothing() {
    let (told, hears) = mpsc::channel();
    let (listener, connect) = listen(&told, limits());
    let mut client = connect(&listener);
    client.send(&frame(0x81, b"fill"));
    let bytes = next(&hears, |told| if let Told::Full(bytes) = told { Some(bytes) } else { None });
    let mut taken = 0;
    while taken < bytes {
        let (first, payload) = client.frame().unwrap();
        assert_eq!((0x82, LARGE), (first, payload.len()));
        taken += payload.len() as u64;
    }
    next(&hears, |told| matches!(told, Told::Writable(_)).then_some(()));
    client.echo("and on");
}

#[test]
fn who_speaks_no_tls_is_sent_away() {
    let (told, _hears) = mpsc::channel();
    let (listener, connect) = listen(&told, Limits { handshake_ms: 300, ..limits() });
    let mut plain = Client::tcp(&listener);
    plain.send(head("/").as_bytes());
    let mut silent = Client::tcp(&listener);
    silent.0.write_all(b"\x16").unwrap();
    for client in [&mut plain, &mut silent] {
        let mut rest = Vec::new();
        // An alert, or nothing at all: the stream ends, by a reset where it was not read to its end.
        let _ = std::io::Read::read_to_end(&mut client.0, &mut rest);
        assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
    }
    connect(&listener).echo("still here");
}

#[test]
fn what_is_no_certificate_is_told() {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (cert.pem(), signing_key.serialize_pem());
    let other = generate_simple_self_signed(["localhost".to_owned()]).unwrap().signing_key.serialize_pem();
    for (chain, key, expected) in [
        ("-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n", &*key, "the certificate: "),
        (&*cert, "", "the key: "),
        (&*cert, &*other, "the certificate and its key: "),
        ("", &*key, "the certificate and its key: "),
    ] {
        let error = tls::server(chain.as_bytes(), key.as_bytes(), &[]).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
