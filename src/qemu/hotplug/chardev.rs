//! Character devices as QMP takes them, from the text that the command line has.

use serde_json::{Map, Value, json};

/// The id and the backend behind `-chardev TEXT`; none for what QMP cannot add.
pub(super) fn backend(text: &str) -> Option<(String, Value)> {
    let mut parts = split(text).into_iter();
    let kind = parts.next()?;
    let mut options = Map::new();
    for part in parts {
        let (name, value) = part.split_once('=')?;
        options.insert(name.to_owned(), value.into());
    }
    let option = |name: &str| options.get(name).and_then(Value::as_str).map(str::to_owned);
    let is_on = |name: &str| option(name).map(|value| value == "on");
    let mut data = Map::new();
    match kind.as_str() {
        "null" | "pty" => {}
        "spicevmc" => {
            data.insert("type".to_owned(), option("name")?.into());
        }
        "spiceport" => {
            data.insert("fqdn".to_owned(), option("name")?.into());
        }
        "file" => {
            data.insert("out".to_owned(), option("path")?.into());
            data.insert("append".to_owned(), is_on("append").unwrap_or(false).into());
        }
        "serial" | "parallel" | "pipe" => {
            data.insert("device".to_owned(), option("path")?.into());
        }
        "udp" => {
            let end = |host: &str, port: &str| {
                Some(json!({ "type": "inet", "data": {
                "host": option(host)?, "port": option(port)? } }))
            };
            data.insert("remote".to_owned(), end("host", "port")?);
            data.insert("local".to_owned(), end("localaddr", "localport")?);
        }
        "socket" => {
            let address = if let Some(descriptor) = option("fd") {
                json!({ "type": "fd", "data": { "str": descriptor } })
            } else if let Some(path) = option("path") {
                json!({ "type": "unix", "data": { "path": path } })
            } else {
                json!({ "type": "inet", "data": { "host": option("host")?, "port": option("port")? } })
            };
            data.insert("addr".to_owned(), address);
            let is_server = is_on("server").unwrap_or(false);
            data.insert("server".to_owned(), is_server.into());
            if is_server {
                data.insert("wait".to_owned(), is_on("wait").unwrap_or(true).into());
            }
            if let Some(telnet) = is_on("telnet") {
                data.insert("telnet".to_owned(), telnet.into());
            }
            if let Some(credentials) = option("tls-creds") {
                data.insert("tls-creds".to_owned(), credentials.into());
            }
            for name in ["reconnect", "reconnect-ms"] {
                if let Some(wait) = option(name).and_then(|text| text.parse::<u64>().ok()) {
                    data.insert(name.to_owned(), wait.into());
                }
            }
        }
        _ => return None,
    }
    if let Some(log) = option("logfile") {
        data.insert("logfile".to_owned(), log.into());
        data.insert("logappend".to_owned(), is_on("logappend").unwrap_or(false).into());
    }
    Some((option("id")?, json!({ "type": kind, "data": data })))
}

/// Splits at commas; two of them stand for one.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(letter) = rest.next() {
        if letter != ',' {
            parts.last_mut().into_iter().for_each(|part| part.push(letter));
        } else if rest.next_if_eq(&',').is_some() {
            parts.last_mut().into_iter().for_each(|part| part.push(','));
        } else {
            parts.push(String::new());
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_text_becomes_qmp() {
        for (text, expected) in [
            ("pty,id=charserial0", json!({ "type": "pty", "data": {} })),
            (
                "socket,id=charserial0,path=/a,,b,reconnect-ms=2000",
                json!({ "type": "socket", "data": {
                    "addr": { "type": "unix", "data": { "path": "/a,b" } },
                    "server": false, "reconnect-ms": 2000 } }),
            ),
            (
                "socket,id=charserial0,host=h,port=1,tls-creds=o",
                json!({ "type": "socket", "data": {
                    "addr": { "type": "inet", "data": { "host": "h", "port": "1" } },
                    "server": false, "tls-creds": "o" } }),
            ),
            (
                "socket,id=charserial0,fd=17,server=on,wait=off",
                json!({ "type": "socket", "data": {
                    "addr": { "type": "fd", "data": { "str": "17" } }, "server": true, "wait": false } }),
            ),
            (
                "file,id=charserial0,path=/dev/fdset/3,append=on",
                json!({ "type": "file", "data": { "out": "/dev/fdset/3", "append": true } }),
            ),
        ] {
            assert_eq!(backend(text), Some(("charserial0".to_owned(), expected)), "{text}");
        }
        assert_eq!(backend("stdio,id=x"), None);
    }
}
