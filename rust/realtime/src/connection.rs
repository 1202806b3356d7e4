//! One connection: its transport, what it is in the middle of, and what could not be written yet.
//!
//! Rules:
//! - an idle connection is this record and nothing beside it. A head or a frame that is torn, and bytes that its socket had
//!   no room for, are kept in boxes that go away with them;
//! - a frame is never torn by another: what was begun is written out first. Then come Ping, Pong and Close, which never wait
//!   behind data, then messages. A Close is the last thing that is written.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;

use flx_core::ws::Decoder;
use mio::net::TcpStream;

use crate::extensions::{Deflate, WindowBits};
use crate::service::ConnId;
use crate::stream::Stream;
use crate::wire::Wire;

/// No such moment.
pub(crate) const NEVER: u64 = u64::MAX;

/// A head that has not come as a whole, or whose answer has not.
pub(crate) struct Handshake {
    pub(crate) received: Vec<u8>,
    /// Where its head ends, once that is whole.
    pub(crate) end: usize,
    pub(crate) peer: SocketAddr,
    /// Whether it waits its turn to be read.
    pub(crate) is_held_back: bool,
    /// What was taken of the extensions that it offers.
    pub(crate) deflate: Option<Deflate>,
}

/// What an open connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Both sides, in frames.
    WebSocket,
    /// We alone, in chunks of one HTTP answer. What the client still says is thrown away.
    EventStream,
}

/// What a connection is in the middle of.
pub(crate) enum State {
    /// Its head is read.
    Head(Box<Handshake>),
    /// Its head is whole; the service has not decided.
    Waiting(Box<Handshake>),
    /// It says and hears what its protocol has.
    Open(Protocol),
    /// Our Close is sent or on its way; the client's is awaited.
    Closing,
    /// All is said. What comes is thrown away until the client closes too, so that a reset does not overtake our last words.
    Lingering,
}

/// What could not be written yet.
#[derive(Default)]
pub(crate) struct Backlog {
    torn: Option<(Wire, usize)>,
    ping: Option<Wire>,
    pong: Option<Wire>,
    close: Option<Wire>,
    messages: VecDeque<Wire>,
    bytes: usize,
    /// When the socket last took something, or the backlog began.
    since_ms: u64,
    /// Whether the service waits to be told that there is room again.
    is_owed: bool,
}

impl Backlog {
    fn next(&mut self) -> Option<(Wire, usize)> {
        let urgent = self.torn.take().or_else(|| {
            let control = self.ping.take().or_else(|| self.pong.take()).or_else(|| self.close.take());
            control.map(|wire| (wire, 0))
        });
        urgent.or_else(|| {
            let wire = self.messages.pop_front()?;
            self.bytes -= wire.len();
            Some((wire, 0))
        })
    }
}

/// How urgent something is that is to be written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ping,
    Pong,
    Close,
    Message,
}

/// What became of something that was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// The socket has all of it.
    All,
    /// A part of it is kept until there is room.
    Part,
    /// Nothing of it.
    None,
}

pub(crate) struct Connection {
    pub(crate) generation: u32,
    /// Whether messages may be compressed, and how far back ours may refer.
    pub(crate) deflate: Option<WindowBits>,
    pub(crate) state: State,
    pub(crate) stream: Stream,
    pub(crate) decoder: Decoder,
    backlog: Option<Box<Backlog>>,
    /// When the next Ping is sent.
    pub(crate) ping_ms: u64,
    /// When the client must have shown a sign of life.
    pub(crate) life_ms: u64,
    /// When what it is in the middle of must be over.
    pub(crate) deadline_ms: u64,
}

impl Connection {
    pub(crate) fn new(generation: u32, stream: Stream, peer: SocketAddr, deadline_ms: u64) -> Self {
        Self {
            generation,
            deflate: None,
            state: State::Head(Box::new(Handshake {
                received: Vec::new(),
                end: 0,
                peer,
                is_held_back: false,
                deflate: None,
            })),
            stream,
            decoder: Decoder::default(),
            backlog: None,
            ping_ms: NEVER,
            life_ms: NEVER,
            deadline_ms,
        }
    }

    /// Whether it is this one, and open.
    pub(crate) fn is_open_as(&self, conn: ConnId) -> bool {
        self.generation == conn.generation && matches!(self.state, State::Open(_))
    }

    /// Its socket, where bytes may go into it past the rest of this: as they are, and with nothing before them.
    pub(crate) fn open_way(&self) -> Option<&TcpStream> {
        if self.backlog.is_none() && self.deflate.is_none() { self.stream.plain() } else { None }
    }

    /// When its socket must have taken something, if it is behind.
    pub(crate) fn stuck_ms(&self, patience_ms: u64) -> u64 {
        self.backlog.as_ref().map_or(NEVER, |backlog| backlog.since_ms + patience_ms)
    }

    /// The next moment at which something is due.
    pub(crate) fn due_ms(&self, patience_ms: u64) -> u64 {
        self.ping_ms.min(self.life_ms).min(self.deadline_ms).min(self.stuck_ms(patience_ms))
    }

    /// Writes frames that need not be written, and that are there in one piece (`whole`) too: those for which the socket has no
    /// room are not kept, but for the rest of one that was begun, and the service is told when there is room. How many were
    /// begun, and what became of the last that was tried.
    pub(crate) fn frames(&mut self, wires: &[Wire], whole: &Wire, now_ms: u64) -> io::Result<(usize, Written)> {
        self.frames_after(0, wires, whole, now_ms)
    }

    /// The same for those of which the socket has so many bytes already.
    pub(crate) fn frames_after(
        &mut self,
        taken: usize,
        wires: &[Wire],
        whole: &Wire,
        now_ms: u64,
    ) -> io::Result<(usize, Written)> {
        if taken == whole.len() {
            return Ok((wires.len(), Written::All));
        }
        if let Some(backlog) = &mut self.backlog {
            backlog.is_owed = true;
            return Ok((0, Written::None));
        }
        let (sent, left) = whole_ones(wires, taken + self.write(whole, taken)?);
        let Some(next) = wires.get(sent) else { return Ok((sent, Written::All)) };
        let torn = (left > 0).then(|| (next.clone(), left));
        let (begun, written) = if torn.is_some() { (sent + 1, Written::Part) } else { (sent, Written::None) };
        self.backlog = Some(Box::new(Backlog { torn, since_ms: now_ms, is_owed: true, ..Backlog::default() }));
        Ok((begun, written))
    }

    /// Writes what must be written, or keeps it until there is room; false when something is kept already and this would be
    /// over `bound` bytes. One message alone may be longer: refused, it would be refused for ever.
    pub(crate) fn send(&mut self, kind: Kind, wire: Wire, bound: usize, now_ms: u64) -> io::Result<bool> {
        if self.backlog.is_none() {
            let taken = self.write(&wire, 0)?;
            if taken == wire.len() {
                return Ok(true);
            }
            let torn = Some((wire, taken));
            self.backlog = Some(Box::new(Backlog { torn, since_ms: now_ms, ..Backlog::default() }));
            return Ok(true);
        }
        let Some(backlog) = &mut self.backlog else { return Ok(true) };
        match kind {
            // The latest is enough (section 5.5.3).
            Kind::Pong => backlog.pong = Some(wire),
            Kind::Ping => backlog.ping = Some(wire),
            Kind::Close => {
                backlog.close = Some(wire);
                (backlog.ping, backlog.pong) = (None, None);
                backlog.messages.clear();
                backlog.bytes = 0;
            }
            Kind::Message => {
                if backlog.bytes > 0 && backlog.bytes + wire.len() > bound {
                    return Ok(false);
                }
                backlog.bytes += wire.len();
                backlog.messages.push_back(wire);
            }
        }
        Ok(true)
    }

    /// Writes as much of the backlog as there is room for. Whether the service is owed a word now that all of it is gone.
    pub(crate) fn flush(&mut self, now_ms: u64) -> io::Result<bool> {
        match self.stream.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            other => other?,
        }
        let Some(mut backlog) = self.backlog.take() else { return Ok(false) };
        while let Some((wire, offset)) = backlog.next() {
            let taken = self.write(&wire, offset)?;
            if taken > 0 {
                backlog.since_ms = now_ms;
            }
            if offset + taken < wire.len() {
                backlog.torn = Some((wire, offset + taken));
                self.backlog = Some(backlog);
                return Ok(false);
            }
        }
        Ok(backlog.is_owed)
    }

    /// Whether nothing waits for room; if something does, the service is told when it no longer does.
    pub(crate) fn has_room(&mut self) -> bool {
        if let Some(backlog) = &mut self.backlog {
            backlog.is_owed = true;
        }
        self.backlog.is_none()
    }

    /// Whether all that was to be written is.
    pub(crate) fn is_flushed(&self) -> bool {
        self.backlog.is_none()
    }

    /// How many bytes of a frame after its first `offset` the socket takes.
    fn write(&mut self, wire: &Wire, offset: usize) -> io::Result<usize> {
        let mut at = offset;
        while at < wire.len() {
            match self.stream.write(&wire.rest(at).map(IoSlice::new)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => at += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(at - offset)
    }
}

/// How many frames the first so many bytes of them are, and how many bytes of the next one.
fn whole_ones(wires: &[Wire], mut bytes: usize) -> (usize, usize) {
    let mut whole = 0;
    while let Some(wire) = wires.get(whole).filter(|wire| wire.len() <= bytes) {
        bytes -= wire.len();
        whole += 1;
    }
    (whole, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The twin sums up from the beginning, for each number of frames.
    #[test]
    fn wherever_frames_are_torn_the_parts_are_all_of_them() {
        let wires: Vec<Wire> = [0, 1, 200, 70_000, 3].map(|length| Wire::text(vec![b'x'; length])).into();
        let joined = Wire::joined(&wires).rest(0).concat();
        assert_eq!(wires.iter().flat_map(|wire| wire.rest(0)).collect::<Vec<_>>().concat(), joined);
        let bytes_of = |count: usize| wires[..count].iter().map(Wire::len).sum::<usize>();
        for bytes in (0..400).chain([70_204, joined.len() - 6, joined.len() - 5, joined.len() - 1, joined.len()]) {
            let (whole, left) = whole_ones(&wires, bytes);
            assert_eq!(bytes, bytes_of(whole) + left);
            assert!(wires.get(whole).is_none_or(|next| left < next.len()), "{bytes}");
        }
        assert_eq!((wires.len(), 0), whole_ones(&wires, joined.len()));
    }
}
