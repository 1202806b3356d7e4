//! What the benchmarks compare Python with: bare signature checks of aws-lc-rs, and a window hit without a binding.
//!
//! Strategy: a line `NAME COUNT` on standard input is answered with the nanoseconds of one call, so that a benchmark in
//! another process can take its turns with this one instead of trusting a figure from another minute. Built with the
//! release profile, as the native module is.
//!
//! Rules:
//! - Keys are made at the start; parsing them is no part of a check.
//! - The message has the length of a usual token's signed part.

use std::error::Error;
use std::hint::black_box;
use std::io::{self, BufRead, Write};
use std::time::Instant;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256,
};
use aws_lc_rs::{hmac, rsa};
use flx_core::limit::{Heap, Lone, Rate, SlidingWindow};

type Fallible<T> = Result<T, Box<dyn Error>>;

const MESSAGE: [u8; 190] = [b'a'; 190];
const CLIENTS: u64 = 10_000;
const STEP_NS: u64 = 100_000;
/// The law by which the load of the servers draws its subjects too.
const EXPONENT: f64 = 1.0;
const DRAWS: usize = 1 << 16;

/// A public key and a signature that it accepts.
struct Signed {
    key: ParsedPublicKey,
    signature: Vec<u8>,
}

impl Signed {
    fn check(&self, count: u64) -> Fallible<()> {
        for _ in 0..count {
            self.key.verify_sig(black_box(&MESSAGE), &self.signature)?;
        }
        Ok(())
    }
}

/// Everything that can be asked for.
struct Floors {
    rs256: Signed,
    es256: Signed,
    eddsa: Signed,
    secret: hmac::Key,
    tag: hmac::Tag,
    /// Hit in turn, by Zipf's law, by one client.
    windows: [SlidingWindow<Heap<Lone>>; 3],
    now_ns: u64,
    /// Clients by Zipf's law.
    drawn: Vec<u64>,
}

/// Clients by Zipf's law, from a fixed seed.
fn drawn() -> Vec<u64> {
    let mut sums = Vec::new();
    let mut sum = 0.0;
    for rank in 1..=CLIENTS {
        sum += (rank as f64).powf(-EXPONENT);
        sums.push(sum);
    }
    let mut state = 20_260_101_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = (state >> 11) as f64 / (1_u64 << 53) as f64 * sum;
        sums.partition_point(|&sum| sum < place) as u64
    };
    (0..DRAWS).map(|_| draw()).collect()
}

impl Floors {
    fn new() -> Fallible<Self> {
        let random = SystemRandom::new();
        let rsa = rsa::KeyPair::generate(KeySize::Rsa2048)?;
        let mut signature = vec![0; rsa.public_modulus_len()];
        rsa.sign(&RSA_PKCS1_SHA256, &random, &MESSAGE, &mut signature)?;
        let rs256 =
            Signed { key: ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, rsa.public_key().as_ref())?, signature };
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let es256 = Signed {
            key: ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, ec.public_key().as_ref())?,
            signature: ec.sign(&random, &MESSAGE)?.as_ref().to_vec(),
        };
        let ed = Ed25519KeyPair::generate()?;
        let eddsa = Signed {
            key: ParsedPublicKey::new(&ED25519, ed.public_key().as_ref())?,
            signature: ed.sign(&MESSAGE).as_ref().to_vec(),
        };
        let secret = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef0123456789ABCDEF");
        let tag = hmac::sign(&secret, &MESSAGE);
        // No client reaches it, however often it is drawn.
        let rate = Rate { limit: 1_000_000, window_ms: 60_000, max_cost: 1 };
        let window = || SlidingWindow::on_heap(rate, 1 << 26, (1, 2)).map_err(|_| "the window cannot be built");
        let windows = [window()?, window()?, window()?];
        Ok(Self { rs256, es256, eddsa, secret, tag, windows, now_ns: 0, drawn: drawn() })
    }

    fn hit(&mut self, window: usize, count: u64, client: impl Fn(&Self, u64) -> u64) {
        for _ in 0..count {
            self.now_ns += STEP_NS;
            let key = client(self, self.now_ns / STEP_NS).to_le_bytes();
            black_box(self.windows[window].hit(&key, self.now_ns, 1).is_ok());
        }
    }

    fn run(&mut self, name: &str, count: u64) -> Fallible<()> {
        match name {
            "HS256" => {
                for _ in 0..count {
                    hmac::verify(&self.secret, black_box(&MESSAGE), self.tag.as_ref())?;
                }
                Ok(())
            }
            "RS256" => self.rs256.check(count),
            "ES256" => self.es256.check(count),
            "EdDSA" => self.eddsa.check(count),
            "window" => {
                self.hit(0, count, |_, step| step % CLIENTS);
                Ok(())
            }
            "window drawn" => {
                self.hit(1, count, |floors, step| floors.drawn[step as usize % DRAWS]);
                Ok(())
            }
            "window of one" => {
                self.hit(2, count, |_, _| 0);
                Ok(())
            }
            _ => Err("unknown name".into()),
        }
    }
}

fn main() -> Fallible<()> {
    let mut floors = Floors::new()?;
    let mut answers = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (name, count) = line.rsplit_once(' ').ok_or("a line is NAME COUNT")?;
        let count: u64 = count.parse()?;
        let began = Instant::now();
        floors.run(name, count)?;
        writeln!(answers, "{}", began.elapsed().as_nanos() as f64 / count as f64)?;
        answers.flush()?;
    }
    Ok(())
}
