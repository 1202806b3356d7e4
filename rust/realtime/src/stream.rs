//! A connection's transport: TCP, or TLS over it.
//!
//! Strategy: bytes leave by `send` and `sendmsg`. The kernel's way through `write` and `writev`, which are for files of any kind,
//! is longer by half a microsecond, a tenth of what a small frame costs. Many small frames at once go past this (`ring.rs`).
//!
//! Rules: nothing blocks. What TLS has to say of itself goes out with the next read, write or flush; after a `write` that took
//! bytes the socket may still be full of them, and the next one says so.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

use mio::net::TcpStream;
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};
use rustls::ServerConnection;

pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

pub(crate) struct Tls {
    socket: TcpStream,
    session: ServerConnection,
}

impl Stream {
    pub(crate) fn tls(socket: TcpStream, session: ServerConnection) -> Self {
        Self::Tls(Box::new(Tls { socket, session }))
    }

    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &mut tls.socket,
        }
    }

    /// The socket, where bytes go into it as they are.
    pub(crate) fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) => None,
        }
    }

    /// Reads what has come; 0 at the end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    /// Whether so short a read means that there is no more for now; a record of TLS may be followed by another.
    pub(crate) fn is_drained_by(&self, read: usize, room: usize) -> bool {
        matches!(self, Self::Plain(_)) && read < room
    }

    /// Hands over as much as there is room for.
    pub(crate) fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => match parts {
                [head, rest] if head.is_empty() => Way(socket).write(rest),
                _ => Way(socket).write_vectored(parts),
            },
            Self::Tls(tls) => {
                tls.flush()?;
                let taken = tls.session.writer().write_vectored(parts)?;
                match tls.flush() {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                    _ => Ok(taken),
                }
            }
        }
    }

    /// Sends what TLS has not been able to send.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.flush(),
        }
    }

    /// Says that nothing more will be sent.
    pub(crate) fn end(&mut self) {
        if let Self::Tls(tls) = self {
            tls.session.send_close_notify();
            let _ = tls.flush();
        }
        let _ = self.socket().shutdown(Shutdown::Write);
    }
}

/// The way out of a socket.
struct Way<'a>(&'a TcpStream);

impl Write for Way<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(sendmsg(self.0, parts, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // An end without a `close_notify` is an end as well: frames say themselves where they end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            if self.session.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            let verdict = self.session.process_new_packets();
            match self.flush() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => verdict.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?,
            };
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut Way(&self.socket))?;
        }
        Ok(())
    }
}
