//! A client's transport: TCP, or TLS over it whose certificate is checked.
//!
//! Rule: what was decrypted is read to its end before the socket is asked about again; a poller knows of the socket alone.

use std::{
    error::Error,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

pub enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// What believes in the servers that the authority of this file has signed for.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub fn trusting(ca: &Path) -> Result<Arc<ClientConfig>, Box<dyn Error>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

impl Stream {
    /// Over a socket that is connected or on its way.
    ///
    /// # Errors
    /// TLS cannot begin.
    pub fn new(socket: TcpStream, tls: Option<&Arc<ClientConfig>>, server: SocketAddr) -> Result<Self, rustls::Error> {
        let Some(config) = tls else { return Ok(Self::Plain(socket)) };
        let session = ClientConnection::new(Arc::clone(config), ServerName::IpAddress(server.ip().into()))?;
        Ok(Self::Tls(Box::new(StreamOwned::new(session, socket))))
    }

    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.sock,
        }
    }

    /// What has come; 0 at the end.
    ///
    /// # Errors
    /// There is nothing now (`WouldBlock`), or it is broken.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let tls = match self {
            Self::Plain(socket) => return socket.read(buffer),
            Self::Tls(tls) => tls,
        };
        let mut filled = 0;
        while filled < buffer.len() {
            match tls.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(size) => filled += size,
                Err(error) if error.kind() == ErrorKind::WouldBlock && filled > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Hands over what there is room for, and takes it off the front.
    ///
    /// # Errors
    /// There is no room now (`WouldBlock`), or it is broken.
    pub fn write(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        while !bytes.is_empty() {
            let size = match self {
                Self::Plain(socket) => socket.write(bytes)?,
                Self::Tls(tls) => tls.write(bytes)?,
            };
            bytes.drain(..size);
        }
        match self {
            Self::Tls(tls) if tls.conn.wants_write() => tls.flush(),
            _ => Ok(()),
        }
    }

    /// Whether TLS has something to send.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.conn.wants_write())
    }

    /// Whether TLS waits for the server's words before anything can be sent.
    #[must_use]
    pub fn is_shaking_hands(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.conn.is_handshaking() && !tls.conn.wants_write())
    }
}
