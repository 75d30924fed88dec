//! Cyrus SASL, the library that `/etc/sasl2/libvirt.conf` configures.
//!
//! ```text
//! open ──start──▶ under way ──step…──▶ complete: who it is, and over plain TCP a layer that encrypts
//! ```
//!
//! All of a connection's functions may block: on a database, on another daemon, on a server of passwords.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::net::SocketAddr;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use sasl2_sys::sasl as library;
use thiserror::Error;
use zeroize::Zeroizing;

/// What the library is known to its configuration by, and clients of Kerberos ask for.
const NAME: &CStr = c"libvirt";
/// Most bytes of one packet of an encrypted stream, in either direction.
const MAX_PACKET: u32 = 64 * 1024;
/// Mechanisms may be as strong as they like.
const STRONGEST: u32 = 100_000;

#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum SaslError {
    #[error("{what}: {code} ({text})")]
    Library { what: &'static str, code: c_int, text: String },
    #[error("no SASL mechanisms are available")]
    NoMechanisms,
    #[error("no client username was found")]
    Nobody,
    #[error("a step out of order")]
    OutOfOrder,
    #[error("a text with a zero byte")]
    ZeroByte,
}

type Result<T> = std::result::Result<T, SaslError>;

/// What protects the bytes of a connection already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Nobody can listen; TLS says with keys of how many bits.
    Secure { bits: Option<u32> },
    /// Everybody can: the mechanism has to encrypt, at least this strongly.
    Open { min_strength: u32 },
}

/// What a step leads to.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// `None` is not the same as empty.
    pub data: Option<Vec<u8>>,
    pub is_complete: bool,
}

/// Makes the library ready, once for the process. Configuration is read in `directory`, if one is given.
pub fn prepare(directory: Option<&Path>) -> Result<()> {
    // The library has one state for the whole process, and no way to tell whether it is ready.
    static PREPARED: OnceLock<Result<()>> = OnceLock::new();
    PREPARED.get_or_init(|| initialise(directory)).clone()
}

fn initialise(directory: Option<&Path>) -> Result<()> {
    // SAFETY: the four functions keep to the contract of a mutex, and nothing of the library runs yet.
    unsafe {
        library::sasl_set_mutex(Some(lock_new), Some(lock_take), Some(lock_release), Some(lock_free));
    }
    if let Some(directory) = directory {
        let path = CString::new(directory.as_os_str().as_encoded_bytes()).map_err(|_| SaslError::ZeroByte)?;
        // SAFETY: the library copies the text, which it does not write to, and has not been initialised yet.
        let code =
            unsafe { library::sasl_set_path(library::SASL_PATH_TYPE_CONFIG, path.as_ptr().cast_mut()) };
        check("failed to set the directory of the SASL configuration", code)?;
    }
    // SAFETY: no callbacks, and a static name.
    let code = unsafe { library::sasl_server_init(ptr::null(), NAME.as_ptr()) };
    check("failed to initialize SASL library", code)
}

fn check(what: &'static str, code: c_int) -> Result<()> {
    if code == library::SASL_OK {
        return Ok(());
    }
    // SAFETY: the text is static; languages are optional.
    let text = unsafe { text(library::sasl_errstring(code, ptr::null(), ptr::null_mut())) };
    Err(SaslError::Library { what, code, text: text.unwrap_or_default() })
}

/// # Safety
///
/// `text` is null or ends with a zero byte.
// SAFETY: every caller has its text from the library, which ends all of them so.
unsafe fn text(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Null for no text.
fn pointer(text: Option<&CString>) -> *const c_char {
    text.map_or(ptr::null(), |text| text.as_ptr())
}

/// A lock that is taken and released by calls, as the library wants it.
#[derive(Default)]
struct Lock {
    is_taken: Mutex<bool>,
    released: Condvar,
}

unsafe extern "C" fn lock_new() -> *mut c_void {
    Box::into_raw(Box::<Lock>::default()).cast()
}

unsafe extern "C" fn lock_take(lock: *mut c_void) -> c_int {
    // SAFETY: the library hands back what `lock_new` made, and frees it after its last use.
    let lock = unsafe { &*lock.cast::<Lock>() };
    let taken = lock.is_taken.lock().unwrap_or_else(PoisonError::into_inner);
    let free = lock.released.wait_while(taken, |taken| *taken);
    *free.unwrap_or_else(PoisonError::into_inner) = true;
    library::SASL_OK
}

unsafe extern "C" fn lock_release(lock: *mut c_void) -> c_int {
    // SAFETY: the library hands back what `lock_new` made, and frees it after its last use.
    let lock = unsafe { &*lock.cast::<Lock>() };
    *lock.is_taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
    lock.released.notify_one();
    library::SASL_OK
}

unsafe extern "C" fn lock_free(lock: *mut c_void) {
    // SAFETY: the library hands back what `lock_new` made, once.
    drop(unsafe { Box::from_raw(lock.cast::<Lock>()) });
}

/// Whether the library may have to ask another program (saslauthd, which asks PAM, LDAP, …) for its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    Nobody,
    Another,
}

impl Asks {
    /// Only who has the password itself can ask about it.
    pub fn of(mechanism: &str) -> Self {
        match ["PLAIN", "LOGIN"].iter().any(|name| name.eq_ignore_ascii_case(mechanism)) {
            true => Self::Another,
            false => Self::Nobody,
        }
    }
}

/// The authentication of one client.
#[derive(Debug)]
pub struct Session {
    connection: NonNull<library::sasl_conn_t>,
    asks: Asks,
    has_started: bool,
    is_complete: bool,
}

// SAFETY: the library ties a connection to no thread, and `&mut self` has one at a time use it.
unsafe impl Send for Session {}

impl Session {
    pub fn open(protection: Protection, remote: Option<SocketAddr>) -> Result<Self> {
        let remote = remote.map(|address| format!("{};{}", address.ip(), address.port()));
        let remote = remote.map(CString::new).transpose().map_err(|_| SaslError::ZeroByte)?;
        let mut connection = ptr::null_mut();
        // SAFETY: all texts live until the call is over, and it copies them.
        let code = unsafe {
            library::sasl_server_new(
                NAME.as_ptr(),
                ptr::null(),
                ptr::null(),
                ptr::null(),
                pointer(remote.as_ref()),
                ptr::null(),
                library::SASL_SUCCESS_DATA,
                &raw mut connection,
            )
        };
        check("Failed to create SASL server context", code)?;
        let connection = NonNull::new(connection).ok_or(SaslError::OutOfOrder)?;
        let mut session = Self { connection, asks: Asks::Nobody, has_started: false, is_complete: false };
        session.require(protection)?;
        Ok(session)
    }

    fn require(&mut self, protection: Protection) -> Result<()> {
        let (min_ssf, max_ssf, security_flags) = match protection {
            Protection::Secure { .. } => (0, 0, 0),
            Protection::Open { min_strength } => {
                (min_strength, STRONGEST, library::SASL_SEC_NOANONYMOUS | library::SASL_SEC_NOPLAINTEXT)
            }
        };
        if let Protection::Secure { bits: Some(bits) } = protection {
            let bits: c_uint = bits;
            self.set("cannot set external SSF", library::SASL_SSF_EXTERNAL, (&raw const bits).cast())?;
        }
        let properties = library::sasl_security_properties {
            min_ssf,
            max_ssf,
            maxbufsize: MAX_PACKET,
            security_flags,
            property_names: ptr::null_mut(),
            property_values: ptr::null_mut(),
        };
        self.set("cannot set security props", library::SASL_SEC_PROPS, (&raw const properties).cast())
    }

    fn set(&mut self, what: &'static str, property: c_uint, value: *const c_void) -> Result<()> {
        // SAFETY: the callers pass what each property points to, and the library copies it.
        let code = unsafe { library::sasl_setprop(self.connection.as_ptr(), property.cast_signed(), value) };
        check(what, code)
    }

    fn get(&mut self, what: &'static str, property: c_uint) -> Result<*const c_void> {
        let mut value = ptr::null();
        // SAFETY: the place is written to if the call succeeds, and not kept.
        let code = unsafe {
            library::sasl_getprop(self.connection.as_ptr(), property.cast_signed(), &raw mut value)
        };
        check(what, code).map(|()| value)
    }

    fn number(&mut self, what: &'static str, property: c_uint) -> Result<u32> {
        let value = self.get(what, property)?.cast::<c_uint>();
        // SAFETY: both properties that are asked for are numbers of the connection's own, or null.
        Ok(unsafe { value.as_ref() }.copied().unwrap_or(0))
    }

    /// The mechanisms that a client may choose from, with commas between.
    pub fn mechanisms(&mut self) -> Result<String> {
        let mut list = ptr::null();
        // SAFETY: the texts are static; the list is the connection's own and copied at once.
        let (code, list) = unsafe {
            let code = library::sasl_listmech(
                self.connection.as_ptr(),
                ptr::null(),
                c"".as_ptr(),
                c",".as_ptr(),
                c"".as_ptr(),
                &raw mut list,
                ptr::null_mut(),
                ptr::null_mut(),
            );
            (code, text(list))
        };
        check("cannot list SASL mechanisms", code)?;
        list.filter(|list| !list.is_empty()).ok_or(SaslError::NoMechanisms)
    }

    /// What the next step may do.
    pub fn asks(&self) -> Asks {
        self.asks
    }

    /// The client chose a mechanism; once.
    pub fn start(&mut self, mechanism: &str, data: Option<&[u8]>) -> Result<Answer> {
        if self.has_started {
            return Err(SaslError::OutOfOrder);
        }
        self.asks = Asks::of(mechanism);
        let mechanism = CString::new(mechanism).map_err(|_| SaslError::ZeroByte)?;
        self.has_started = true;
        self.exchange(
            "Failed to start SASL negotiation",
            data,
            |connection, data, length, out, out_length| {
                // SAFETY: see `exchange`; the name lives until the call is over.
                unsafe {
                    library::sasl_server_start(connection, mechanism.as_ptr(), data, length, out, out_length)
                }
            },
        )
    }

    /// The client goes on. The library would follow a null pointer before the start.
    pub fn step(&mut self, data: Option<&[u8]>) -> Result<Answer> {
        if !self.has_started || self.is_complete {
            return Err(SaslError::OutOfOrder);
        }
        self.exchange("Failed to step SASL negotiation", data, |connection, data, length, out, out_length| {
            // SAFETY: see `exchange`.
            unsafe { library::sasl_server_step(connection, data, length, out, out_length) }
        })
    }

    /// `call` gets the connection, the client's data, and places for the answer, which are all valid meanwhile.
    fn exchange(
        &mut self,
        what: &'static str,
        data: Option<&[u8]>,
        call: impl FnOnce(
            *mut library::sasl_conn_t,
            *const c_char,
            c_uint,
            *mut *const c_char,
            *mut c_uint,
        ) -> c_int,
    ) -> Result<Answer> {
        let connection = self.connection.as_ptr();
        let length = data.map_or(0, |data| c_uint::try_from(data.len()).unwrap_or(c_uint::MAX));
        let data = match data {
            None => ptr::null(),
            Some([]) => c"".as_ptr(),
            Some(data) => data.as_ptr().cast(),
        };
        let (mut out, mut out_length) = (ptr::null(), 0);
        let code = call(connection, data, length, &raw mut out, &raw mut out_length);
        if code != library::SASL_OK && code != library::SASL_CONTINUE {
            // SAFETY: the text is the connection's own and copied at once.
            let text = unsafe { text(library::sasl_errdetail(connection)) }.unwrap_or_default();
            return Err(SaslError::Library { what, code, text });
        }
        self.is_complete = code == library::SASL_OK;
        Ok(Answer { data: copy(out, out_length), is_complete: self.is_complete })
    }

    /// Who the client is; asked when the exchange is complete.
    pub fn user(&mut self) -> Result<String> {
        let user = self.get("cannot query SASL username on connection", library::SASL_USERNAME)?;
        // SAFETY: the property is a text of the connection's own.
        unsafe { text(user.cast()) }.filter(|user| !user.is_empty()).ok_or(SaslError::Nobody)
    }

    /// How strongly what follows is encrypted, about in bits of a key; 0 is not at all.
    pub fn strength(&mut self) -> Result<u32> {
        self.number("cannot query SASL ssf on connection", library::SASL_SSF)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut connection = self.connection.as_ptr();
        // SAFETY: it is this session's and used for the last time.
        unsafe { library::sasl_dispose(&raw mut connection) };
    }
}

/// What the library points to, which is its own until the connection's next call.
fn copy(bytes: *const c_char, length: c_uint) -> Option<Vec<u8>> {
    if bytes.is_null() {
        return None;
    }
    // SAFETY: the library says that so many bytes are there, and nothing has been called since.
    Some(unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), length as usize) }.to_vec())
}

/// The encryption of a stream that a complete session has agreed on.
#[derive(Debug)]
pub struct Layer {
    session: Session,
    /// Most bytes that may be encoded at once.
    max_input: usize,
}

impl Layer {
    pub fn new(mut session: Session) -> Result<Self> {
        let max = session.number("cannot get security props", library::SASL_MAXOUTBUF)?;
        Ok(Self { session, max_input: max.clamp(1, MAX_PACKET) as usize })
    }

    /// Encrypts as much from the front of `bytes` as one packet takes.
    pub fn encode(&mut self, bytes: &mut BytesMut) -> Result<Bytes> {
        let input = bytes.split_to(bytes.len().min(self.max_input));
        self.convert("failed to encode SASL data", &input, library::sasl_encode).map(Bytes::from)
    }

    /// Decrypts what came from the client; incomplete packets stay in the library.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        self.convert("failed to decode SASL data", bytes, library::sasl_decode).map(Zeroizing::new)
    }

    fn convert(&mut self, what: &'static str, input: &[u8], call: Convert) -> Result<Vec<u8>> {
        let (mut out, mut out_length) = (ptr::null(), 0);
        let length = c_uint::try_from(input.len()).unwrap_or(c_uint::MAX);
        let connection = self.session.connection.as_ptr();
        // SAFETY: so many bytes are there to read; the answer is copied before the connection's next call.
        let code =
            unsafe { call(connection, input.as_ptr().cast(), length, &raw mut out, &raw mut out_length) };
        check(what, code)?;
        Ok(copy(out, out_length).unwrap_or_default())
    }
}

/// `sasl_encode` or `sasl_decode`
type Convert = unsafe extern "C" fn(
    *mut library::sasl_conn_t,
    *const c_char,
    c_uint,
    *mut *const c_char,
    *mut c_uint,
) -> c_int;
