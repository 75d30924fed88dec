//! Recorded conversations with QEMU as answers to our questions.
//!
//! A recording is one command and one reply after another; a second negotiation begins the part with KVM
//! turned off.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use ferrovirt::qemu::capabilities::QemuCaps;
use ferrovirt::qemu::capabilities::probe::{self, Answers, Question};
use serde_json::{Map, Value, json};

/// Whether machines go by their alias only, so that data does not change with every version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machines {
    AsRecorded,
    ByAlias,
}

pub(crate) fn capabilities(path: &Path, machines: Machines) -> QemuCaps {
    let text = fs::read_to_string(path).expect("the replies are there");
    let documents = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let documents: Vec<Value> = documents.collect::<Result<_, _>>().expect("replies are JSON");
    let mut parts: Vec<HashMap<String, Value>> = Vec::new();
    for pair in documents.chunks_exact(2) {
        if pair[0]["execute"] == "qmp_capabilities" || parts.is_empty() {
            parts.push(HashMap::new());
        }
        let part = parts.last_mut().expect("one was pushed");
        if let Some(reply) = pair[1].get("return") {
            part.entry(key(&pair[0]["execute"], &pair[0]["arguments"])).or_insert_with(|| reply.clone());
        }
    }
    let answers: Vec<Answers> = parts
        .iter()
        .zip([probe::questions(), probe::accel_questions()])
        .map(|(part, questions)| answers(part, questions, machines))
        .collect();
    let binary = "/usr/bin/qemu-system-x86_64".into();
    probe::assemble(binary, &answers[0], answers.get(1)).expect("the replies are complete")
}

/// A command and its arguments, whatever their order.
fn key(command: &Value, arguments: &Value) -> String {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let mut pairs: Vec<_> = map.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
                Value::Object(pairs.into_iter().collect())
            }
            other => other.clone(),
        }
    }
    format!("{command} {}", sorted(arguments))
}

fn answers(part: &HashMap<String, Value>, questions: Vec<Question>, machines: Machines) -> Answers {
    let mut all = Map::new();
    for question in questions {
        let asked = key(&json!(question.command), &question.arguments.unwrap_or_default());
        if let Some(answer) = part.get(&asked) {
            all.insert(question.key, answer.clone());
        }
    }
    if machines == Machines::ByAlias
        && let Some(Value::Array(list)) = all.get_mut("query-machines")
    {
        for machine in list.iter_mut().filter_map(Value::as_object_mut) {
            if let Some(alias) = machine.remove("alias") {
                machine.insert("name".to_owned(), alias);
            }
        }
    }
    serde_json::from_value(Value::Object(all)).expect("answers are a map")
}
