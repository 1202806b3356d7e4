//! Many sends by one system call (`io_uring`), where the kernel has it and permits it.
//!
//! Strategy: the ring is a list of requests that the kernel works off within the one call that hands them over. Each send says
//! `MSG_DONTWAIT`: one that finds a full socket ends with that answer and is not kept, so when the call is over all are, and
//! nothing of the ring is under way between two turns.
//!
//! Rules:
//! - what is sent is copied together first, into bytes of the ring's own: what the kernel reads lives as long as the ring.
//!   The sockets are borrowed until the answers are there;
//! - a ring that fails is not used again. What the kernel has not looked at is told so, and goes the other way; where it is
//!   unknown what became of a send, that is told, and the bytes stay where they are for good.
#![expect(unsafe_code, reason = "the kernel reads what the requests point at")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, types};
use rustix::net::SendFlags;

use crate::wire::Wire;

/// Sends in one call; as many as the hub gives out in a turn.
const ENTRIES: u32 = 256;

/// What is kept of the bytes between two turns.
const KEPT_BYTES: usize = 256 * 1024;

/// What became of one send.
#[derive(Debug)]
pub(crate) enum Sent {
    /// How many bytes the socket took.
    Taken(usize),
    /// Nobody can tell what became of it.
    Unknown,
    /// The kernel has not looked at it.
    Untried,
}

/// How handing over a part ended.
enum Outcome {
    Answered,
    /// The rest was not looked at.
    Refused,
    /// The kernel may still be at some.
    Unknown,
}

pub(crate) struct Ring {
    ring: IoUring,
    /// What is being sent.
    bytes: Vec<u8>,
}

impl Ring {
    /// A ring of the calling thread's, which alone may use it; it is refused by kernels before 6.1, and by many containers.
    pub(crate) fn new() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
        Ok(Self { ring: builder.build(ENTRIES)?, bytes: Vec::new() })
    }

    /// Sends each of these to its socket, in this order, without waiting for room. What became of them, by their places, and
    /// the ring unless it failed.
    pub(crate) fn send(mut self, sends: &[(BorrowedFd<'_>, &Wire)]) -> (Vec<Sent>, Option<Self>) {
        let mut sent: Vec<Sent> = sends.iter().map(|_| Sent::Untried).collect();
        for (part, answers) in sends.chunks(ENTRIES as usize).zip(sent.chunks_mut(ENTRIES as usize)) {
            match self.send_part(part, answers) {
                Outcome::Answered => {}
                Outcome::Refused => return (sent, None),
                Outcome::Unknown => {
                    mem::forget(self);
                    return (sent, None);
                }
            }
        }
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        (sent, Some(self))
    }

    /// Sends as many as there is room for in one call.
    fn send_part(&mut self, sends: &[(BorrowedFd<'_>, &Wire)], sent: &mut [Sent]) -> Outcome {
        let spans = self.put_together(sends);
        let mut queue = self.ring.submission();
        for (place, ((socket, _), (from, length))) in sends.iter().zip(spans).enumerate() {
            let bytes = self.bytes[from..from + length].as_ptr();
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let request = opcode::Send::new(types::Fd(socket.as_raw_fd()), bytes, length as u32)
                .flags(flags.bits().cast_signed())
                .build()
                .user_data(place as u64);
            // SAFETY: the kernel reads the bytes while it works the request off, which is over when its answer is there. This
            // function ends when all answers are, or says that some are not, and then the bytes are kept for good (`send`).
            // Nothing writes to them meanwhile, and the sockets are borrowed until the end.
            if unsafe { queue.push(&request) }.is_err() {
                return Outcome::Refused;
            }
        }
        drop(queue);
        let mut answered = 0;
        loop {
            let handed_over = self.ring.submit_and_wait(1);
            for answer in self.ring.completion() {
                answered += 1;
                if let Some(sent) = sent.get_mut(answer.user_data() as usize) {
                    *sent = told(answer.result());
                }
            }
            match handed_over {
                _ if answered == sends.len() => return Outcome::Answered,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        // They were looked at in their order.
        let begun = sends.len() - self.ring.submission().len();
        let unknown = sent[..begun].iter_mut().filter(|sent| matches!(sent, Sent::Untried));
        unknown.for_each(|sent| *sent = Sent::Unknown);
        if answered == begun { Outcome::Refused } else { Outcome::Unknown }
    }

    /// Copies together what is sent; one that goes to several in a row is there once. Where each lies.
    fn put_together(&mut self, sends: &[(BorrowedFd<'_>, &Wire)]) -> Vec<(usize, usize)> {
        self.bytes.clear();
        let mut last = None;
        let spans = sends.iter().map(|(_, wire)| {
            if let Some((span, before)) = last
                && std::ptr::eq(before, *wire)
            {
                return span;
            }
            let span = (self.bytes.len(), wire.len());
            wire.rest(0).iter().for_each(|part| self.bytes.extend_from_slice(part));
            last = Some((span, *wire));
            span
        });
        spans.collect()
    }
}

/// What the kernel's answer means. An error says nothing here: it may be the ring's and not the socket's, and `send`, which is
/// tried next, tells.
fn told(answer: i32) -> Sent {
    Sent::Taken(usize::try_from(answer).unwrap_or(0))
}

#[cfg(test)]
mod tests;
