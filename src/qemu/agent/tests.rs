//! An agent that is asked, and what it may do instead of answering.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::{
    Agent, AgentError, Done, Happening, MARKER, MAX_NOISE_BYTES, MAX_REPLY_BYTES, Patience, Request,
};

/// What an agent answers to synchronizations and to everything else.
type Answers = fn(command: &Value) -> Vec<u8>;

fn patience(seconds: i32) -> Patience {
    Patience::from_number(seconds).unwrap()
}

fn ping() -> Request {
    Request::new("guest-ping", Value::Null)
}

/// A polite answer: the number behind the marker, an empty object to all else.
fn polite(command: &Value) -> Vec<u8> {
    match command["execute"].as_str() {
        Some("guest-sync-delimited") => {
            [&[MARKER][..], format!("{}\n", json!({ "return": command["arguments"]["id"] })).as_bytes()]
                .concat()
        }
        _ => b"{\"return\": {}}\n".to_vec(),
    }
}

/// Both ends of a channel: ours, and a guest's that answers line by line.
fn connected(answers: Answers) -> Agent {
    let (ours, guests) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let (read, mut write) = guests.into_split();
        let mut lines = BufReader::new(read).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            let line: Vec<u8> = line.into_iter().filter(|byte| *byte != MARKER).collect();
            let answer = answers(&serde_json::from_slice(&line).unwrap());
            if write.write_all(&answer).await.is_err() {
                return;
            }
        }
    });
    Agent::on(ours, "guest")
}

#[tokio::test]
async fn a_synchronization_comes_first_and_only_once() {
    let (ours, guests) = UnixStream::pair().unwrap();
    let agent = Agent::on(ours, "guest");
    let guest = tokio::spawn(async move {
        let (read, mut write) = guests.into_split();
        let mut seen = Vec::new();
        let mut lines = BufReader::new(read).split(b'\n');
        while let Ok(Some(mut line)) = lines.next_segment().await {
            if line.first() == Some(&MARKER) {
                line.remove(0);
            }
            let command: Value = serde_json::from_slice(&line).unwrap();
            write.write_all(&polite(&command)).await.unwrap();
            seen.push(command["execute"].as_str().unwrap().to_owned());
        }
        seen
    });
    for _ in 0..2 {
        let Done = agent.request(&ping(), patience(60)).await.unwrap().unwrap();
    }
    drop(agent);
    assert_eq!(guest.await.unwrap(), ["guest-sync-delimited", "guest-ping", "guest-ping"]);
}

#[tokio::test]
async fn what_was_said_before_the_marker_is_no_answer() {
    let agent = connected(|command| {
        let mut noise = b"login: \xff{\"return\": 1}\n{\"return\": \"old\"}\nnot json \xff{\"ret".to_vec();
        match command["execute"].as_str() {
            Some("guest-sync-delimited") => {
                noise.extend(polite(command));
                noise
            }
            _ => b"{\"event\": \"x\"}\n\n{\"return\": \"new\"}\n".to_vec(),
        }
    });
    let answer: Option<String> = agent.request(&ping(), patience(60)).await.unwrap();
    assert_eq!(answer.as_deref(), Some("new"));
}

#[tokio::test]
async fn a_late_answer_is_not_taken_for_the_next_one() {
    let (ours, mut guests) = UnixStream::pair().unwrap();
    let agent = Agent::on(ours, "guest");
    agent.in_step.store(true, std::sync::atomic::Ordering::Relaxed);
    guests.write_all(b"{\"return\": \"late\"}\n").await.unwrap();
    agent.stream.readable().await.unwrap();
    let guest = async {
        let mut first = vec![0; 1];
        guests.read_exact(&mut first).await.unwrap();
        first
    };
    let request = ping();
    let (asked, first) = tokio::join!(agent.request::<Done>(&request, patience(0)), guest);
    assert!(matches!(asked, Err(AgentError::Silent { .. })), "{asked:?}");
    assert_eq!(first, [MARKER], "synchronized again");
}

/// Each of these ends, with an error that says how, and the next request starts afresh.
#[tokio::test(start_paused = true)]
async fn an_agent_that_misbehaves_costs_a_bounded_time_and_memory() {
    type Expected = fn(&AgentError) -> bool;
    let cases: [(Answers, Expected); 8] = [
        (|_| Vec::new(), |error| matches!(error, AgentError::Silent { seconds: 5 })),
        (
            |command| if command["execute"] == "guest-ping" { Vec::new() } else { polite(command) },
            |error| matches!(error, AgentError::Timeout { seconds: 60 }),
        ),
        (
            |command| if command["execute"] == "guest-ping" { b"}\n".to_vec() } else { polite(command) },
            |error| matches!(error, AgentError::Garbage { .. }),
        ),
        (
            |command| if command["execute"] == "guest-ping" { b"{}\n".to_vec() } else { polite(command) },
            |error| matches!(error, AgentError::Unknown { .. }),
        ),
        (
            |command| match command["execute"].as_str() {
                Some("guest-ping") => vec![b'['; MAX_REPLY_BYTES + 8192],
                _ => polite(command),
            },
            |error| matches!(error, AgentError::TooLarge { .. }),
        ),
        (
            |command| match command["execute"].as_str() {
                Some("guest-ping") => vec![b'['; 1_000_000].into_iter().chain(*b"\n").collect(),
                _ => polite(command),
            },
            |error| matches!(error, AgentError::Garbage { .. }),
        ),
        (|_| vec![b'\n'; MAX_NOISE_BYTES + 32768], |error| matches!(error, AgentError::Unsynced { .. })),
        (
            |_| [MARKER, b'{', b'\n', MARKER].repeat(MAX_NOISE_BYTES / 4 + 8192),
            |error| matches!(error, AgentError::Unsynced { .. }),
        ),
    ];
    for (at, (answers, expected)) in cases.into_iter().enumerate() {
        let agent = connected(answers);
        let error = agent.request::<Done>(&ping(), patience(60)).await.unwrap_err();
        assert!(expected(&error), "case {at}: {error:?}");
    }
}

#[tokio::test]
async fn a_refusal_says_what_was_refused() {
    let agent = connected(|command| match command["execute"].as_str() {
        Some("guest-ping") => {
            b"{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no such thing\"}}\n".to_vec()
        }
        Some("guest-other") => b"{\"error\": {\"class\": \"Unsupported\"}}\n".to_vec(),
        _ => polite(command),
    });
    let error = agent.request::<Done>(&ping(), patience(60)).await.unwrap_err();
    assert!(error.is_unsupported());
    assert_eq!(error.to_string(), "unable to execute QEMU agent command 'guest-ping': no such thing");
    let other = Request::new("guest-other", Value::Null);
    let error = agent.request::<Done>(&other, patience(60)).await.unwrap_err();
    assert!(error.to_string().ends_with("this feature or command is not currently supported"), "{error}");
}

#[tokio::test]
async fn a_reply_that_is_not_what_it_should_be_is_an_error() {
    let agent = connected(polite);
    let error = agent.request::<Vec<u32>>(&ping(), patience(60)).await.unwrap_err();
    assert!(matches!(error, AgentError::Malformed { .. }), "{error:?}");
}

/// An agent that synchronizes and answers nothing else; tells when it was asked something else.
fn silent() -> (Agent, oneshot::Receiver<()>) {
    let (ours, guests) = UnixStream::pair().unwrap();
    let (asked, was_asked) = oneshot::channel();
    tokio::spawn(async move {
        let (read, mut write) = guests.into_split();
        let mut lines = BufReader::new(read).split(b'\n');
        let mut sync = lines.next_segment().await.unwrap().unwrap();
        sync.remove(0);
        write.write_all(&polite(&serde_json::from_slice(&sync).unwrap())).await.unwrap();
        lines.next_segment().await.unwrap().unwrap();
        asked.send(()).unwrap();
        // Stays until the daemon has closed its end.
        while let Ok(Some(_)) = lines.next_segment().await {}
    });
    (Agent::on(ours, "guest"), was_asked)
}

#[tokio::test]
async fn an_agent_that_leaves_ends_the_wait() {
    let (agent, was_asked) = silent();
    let leave = async {
        was_asked.await.unwrap();
        agent.leave();
    };
    let request = ping();
    let (asked, ()) = tokio::join!(agent.request::<Done>(&request, Patience::BLOCK), leave);
    assert!(matches!(asked, Err(AgentError::Disappeared)), "{asked:?}");
    assert!(agent.has_left());
    let again = agent.request::<Done>(&request, Patience::BLOCK).await;
    assert!(matches!(again, Err(AgentError::Left)), "{again:?}");
}

#[tokio::test]
async fn a_guest_that_does_as_told_needs_no_reply() {
    for happening in [Some(Happening::Shutdown), None] {
        let (agent, was_asked) = silent();
        let request = ping().awaits(Happening::Shutdown);
        let notice = async {
            was_asked.await.unwrap();
            agent.notice(Happening::Reset);
            match happening {
                Some(happening) => agent.notice(happening),
                // On its way down it closes the port.
                None => agent.leave(),
            }
        };
        let (asked, ()) = tokio::join!(agent.request::<Done>(&request, Patience::BLOCK), notice);
        assert_eq!(asked.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_decides_how_long_an_agent_may_take() {
    for (number, sync) in [(-2, 5), (-1, 5), (0, 0), (3, 3), (60, 5)] {
        assert_eq!(patience(number).for_sync(), Duration::from_secs(sync), "{number}");
    }
    for (number, limit) in [(-2, 300), (-1, 5), (0, 0), (3, 3), (60, 60)] {
        assert_eq!(ping().limit(patience(number)), Duration::from_secs(limit), "{number}");
    }
    assert_eq!(Patience::from_number(-3), None);
}

#[tokio::test]
async fn a_users_command_comes_back_as_the_agent_wrote_it() {
    let agent = connected(|command| match command["execute"].as_str() {
        Some("guest-sync-delimited") => polite(command),
        _ => b"{\"return\": { \"b\": [ 1, 2 ],  \"a\": \"\\u00e9\" } }\r\n".to_vec(),
    });
    let request = Request::from_text("{ \"execute\": \"x\" }").unwrap();
    let text = agent.request_text(&request, patience(60)).await.unwrap();
    assert_eq!(text, "{\"return\":{\"b\":[1,2],\"a\":\"é\"}}");
    assert!(matches!(Request::from_text("{"), Err(AgentError::Json { .. })));
}
