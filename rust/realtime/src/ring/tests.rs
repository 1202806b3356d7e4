use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::net::send;
use rustix::net::sockopt::set_socket_send_buffer_size;

use super::*;

/// A kernel that refuses it leaves nothing to test here: what happens then has tests of its own.
fn ring() -> Option<Ring> {
    Ring::new().ok()
}

/// A socket in one of several conditions, and its other end.
fn pair(number: usize) -> (UnixStream, Option<UnixStream>) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    set_socket_send_buffer_size(&near, 4096).unwrap();
    match number % 5 {
        // Full.
        0 => while send(&near, &[b'f'; 512], SendFlags::NOSIGNAL).is_ok() {},
        // Nearly.
        1 => drop(send(&near, &[b'n'; 3000], SendFlags::NOSIGNAL)),
        2 => return (near, None),
        _ => {}
    }
    (near, Some(far))
}

fn heard(far: Option<UnixStream>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut far) = far {
        // It ends with that nothing more is there.
        let _ = far.read_to_end(&mut bytes);
    }
    bytes
}

fn wire(number: usize) -> Wire {
    Wire::text(vec![b'a' + (number % 26) as u8; number * 37 % 4000])
}

/// The twin is one `send` after the other, to sockets in the same conditions.
#[test]
fn together_sockets_take_what_they_take_one_by_one() {
    let Some(mut ring) = ring() else { return };
    for count in [1, 3, 256, 700] {
        let wires: Vec<_> = (0..count).map(wire).collect();
        // Every third has the one before it too.
        let wire_of = |number: usize| &wires[if number % 3 == 2 { number - 1 } else { number }];
        let (one, twin): (Vec<_>, Vec<_>) = (0..count).map(|number| (pair(number), pair(number))).unzip();
        let sends: Vec<_> = one.iter().enumerate().map(|(at, (near, _))| (near.as_fd(), wire_of(at))).collect();
        let (sent, left) = ring.send(&sends);
        ring = left.unwrap();
        for (number, (sent, (one, twin))) in sent.into_iter().zip(one.into_iter().zip(twin)).enumerate() {
            let bytes = wire_of(number).rest(0).concat();
            match (sent, send(&twin.0, &bytes, SendFlags::NOSIGNAL)) {
                (Sent::Taken(taken), Ok(as_many)) => assert_eq!(as_many, taken, "{number}"),
                // Why, the next `send` tells.
                (Sent::Taken(taken), Err(_)) => assert_eq!(0, taken, "{number}"),
                other => panic!("{number}: {other:?}"),
            }
            assert_eq!(heard(twin.1), heard(one.1), "{number}");
        }
    }
}

#[test]
fn one_socket_gets_what_is_for_it_in_order() {
    let Some(ring) = ring() else { return };
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut far = TcpStream::connect(door.local_addr().unwrap()).unwrap();
    let (near, _) = door.accept().unwrap();
    let wires: Vec<_> = (0..300).map(|number| Wire::text(format!("{number}").into_bytes())).collect();
    let sends: Vec<_> = wires.iter().map(|wire| (near.as_fd(), wire)).collect();
    let (sent, _) = ring.send(&sends);
    assert!(sent.iter().zip(&wires).all(|(sent, wire)| matches!(sent, Sent::Taken(taken) if *taken == wire.len())));
    let whole = Wire::joined(&wires).rest(0).concat();
    let mut heard = vec![0; whole.len()];
    far.read_exact(&mut heard).unwrap();
    assert_eq!(whole, heard);
}

/// A ring of another thread's is one that the kernel refuses to work off.
#[test]
fn what_a_ring_that_fails_did_not_send_was_not_tried() {
    let Some(foreign) = thread::spawn(ring).join().unwrap() else { return };
    let (near, far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let (sent, left) = foreign.send(&[(near.as_fd(), &wire(1)), (near.as_fd(), &wire(2))]);
    assert!(sent.iter().all(|sent| matches!(sent, Sent::Untried)) && sent.len() == 2 && left.is_none(), "{sent:?}");
    assert!(heard(Some(far)).is_empty());
}
