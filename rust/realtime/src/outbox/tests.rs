use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::thread;

use super::*;
use crate::stream::Stream;

/// A ring that fails is let go, and nobody misses anything.
#[test]
fn what_a_ring_does_not_send_goes_one_by_one() {
    for ring in [None, thread::spawn(|| Ring::new().ok()).join().unwrap(), Ring::new().ok()] {
        let mut table = table(ring);
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = door.local_addr().unwrap();
        let clients: Vec<_> = (0..6).map(|_| TcpStream::connect(address).unwrap()).collect();
        let conns: Vec<_> = clients.iter().map(|_| open(&mut table, &door)).collect();
        let bundles = [1, 2].map(|count| Bundle::of((0..count).map(|at| Wire::text(vec![b'0' + at; 9]))));
        let sends: Vec<_> = conns.iter().zip(bundles.iter().cycle()).map(|(conn, bundle)| (*conn, bundle)).collect();
        let gone = ConnId { index: 0, generation: 77 };
        let among = [&sends[..2], &[(gone, &bundles[0])], &sends[2..]].concat();
        for _ in 0..2 {
            let said = Outbox(&mut table).bundles(&among);
            let sent = [(1, Taken::Sent), (2, Taken::Sent)];
            assert_eq!([&sent[..], &[(0, Taken::Gone)], &sent, &sent].concat(), said);
        }
        for (mut client, (_, bundle)) in clients.into_iter().zip(&sends) {
            let mut heard = vec![0; bundle.whole().len() * 2];
            client.read_exact(&mut heard).unwrap();
            assert_eq!(bundle.whole().rest(0).concat().repeat(2), heard);
        }
        assert!(table.partings.is_empty());
    }
}

/// One whose client has reset it is lost, and the others are not.
#[test]
fn who_is_gone_is_lost_alone() {
    let mut table = table(Ring::new().ok());
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let clients: Vec<_> = (0..5).map(|_| TcpStream::connect(door.local_addr().unwrap()).unwrap()).collect();
    let conns: Vec<_> = clients.iter().map(|_| open(&mut table, &door)).collect();
    let bundle = Bundle::of([Wire::text(vec![b'x'; 9])].into_iter());
    let sends: Vec<_> = conns.iter().map(|conn| (*conn, &bundle)).collect();
    let mut clients = clients.into_iter();
    drop(clients.next());
    // The first is answered with a reset, and then the socket knows.
    let said = loop {
        let said = Outbox(&mut table).bundles(&sends);
        if said[0] != (1, Taken::Sent) {
            break said;
        }
    };
    assert_eq!([&[(0, Taken::Gone)][..], &[(1, Taken::Sent)].repeat(4)].concat(), said);
    assert_eq!(vec![conns[0]], table.partings.iter().map(|(conn, _)| *conn).collect::<Vec<_>>());
}

fn table(ring: Option<Ring>) -> Table {
    Table {
        connections: Slab::new(),
        wheel: Wheel::new(0),
        limits: Limits::default(),
        open: 6,
        deciding: 0,
        now_ms: 0,
        partings: Vec::new(),
        finished: Vec::new(),
        deflater: Deflater::default(),
        ring,
    }
}

fn open(table: &mut Table, door: &TcpListener) -> ConnId {
    let (socket, peer) = door.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut connection = Connection::new(7, Stream::Plain(mio::net::TcpStream::from_std(socket)), peer, NEVER);
    connection.state = State::Open(Protocol::WebSocket);
    ConnId { index: table.connections.insert(connection) as u32, generation: 7 }
}
