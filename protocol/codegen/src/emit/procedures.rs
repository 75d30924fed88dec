//! `procedure.rs` and `event.rs`: one type each, and the table over all of them.

use super::doc;
use crate::model::{Acl, Call, Module, When};
use crate::names;

pub(super) fn emit_calls(module: &Module) -> String {
    let calls: Vec<_> = module.calls.iter().map(emit_call).collect();
    let mut kinds: Vec<_> = module.calls.iter().map(|call| call.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let subject = if module.calls.iter().any(|call| call.subject.is_some()) { ", FindSubject" } else { "" };
    let named = if subject.is_empty() { "" } else { ", Subject" };
    let when = if module.calls.iter().any(|call| !call.acl.is_empty()) { ", When" } else { "" };
    format!(
        "use super::{{PROGRAM, types::*}};\nuse crate::procedure::{{Acl{subject}, Priority, Procedure, Program, {}{named}{when}}};\n\n{}",
        kinds.join(", "),
        calls.join("\n")
    )
}

fn emit_call(call: &Call) -> String {
    let name = names::camel(&call.name);
    let unit = || "()".to_owned();
    let mut head = doc(&call.doc, "");
    if !head.is_empty() {
        head += "///\n";
    }
    let decides = match (&call.looks_at, &call.args) {
        (Some(field), Some(args)) => {
            format!("\n    fn deciding(args: &{args}) -> u32 {{\n        args.{field}\n    }}\n")
        }
        _ => String::new(),
    };
    let subject = match &call.subject {
        Some((class, place)) => format!(
            "    const SUBJECT: Option<FindSubject<Self::Args>> = Some(|args| Subject::{class}(&args.{place}));\n"
        ),
        None => String::new(),
    };
    format!(
        "{head}/// `{api}`\n#[derive(Debug, Clone, Copy)]\npub enum {name} {{}}\n\nimpl Procedure for {name} {{\n    \
         const PROGRAM: Program = PROGRAM;\n    const NUMBER: i32 = {number};\n    \
         const NAME: &'static str = \"{wire}\";\n    const API: &'static str = \"{api}\";\n    \
         const PRIORITY: Priority = Priority::{priority};\n    const ACL: &'static [Acl] = &[{acl}];\n{subject}{secret}    \
         type Kind = {kind};\n    type Args = {args};\n    type Ret = {ret};\n{decides}}}\n",
        api = call.api,
        number = call.number,
        wire = call.name,
        priority = if call.high { "High" } else { "Low" },
        acl = emit_acl(&call.acl),
        secret = if call.secret { "    const IS_SECRET: bool = true;\n" } else { "" },
        kind = call.kind,
        args = call.args.clone().unwrap_or_else(unit),
        ret = call.ret.clone().unwrap_or_else(unit),
    )
}

fn emit_acl(acl: &[Acl]) -> String {
    let checks: Vec<_> = acl
        .iter()
        .map(|check| {
            let when = match check.when {
                When::Always => "Always".to_owned(),
                When::Set(mask) => format!("Set({mask:#x})"),
                When::Clear(mask) => format!("Clear({mask:#x})"),
                When::Equals(value) => format!("Equals({value})"),
            };
            format!(
                "Acl {{ object: \"{}\", permission: \"{}\", when: When::{when} }}",
                check.object, check.permission
            )
        })
        .collect();
    match checks.as_slice() {
        [] | [_] => checks.concat(),
        _ => format!("\n        {},\n    ", checks.join(",\n        ")),
    }
}

pub(super) fn emit_events(module: &Module) -> String {
    let types =
        if module.types.is_empty() { "use super::PROGRAM;" } else { "use super::{PROGRAM, types::*};" };
    let mut text = format!("{types}\nuse crate::procedure::{{Event, Program}};\n");
    for event in &module.events {
        let name = names::camel(&event.name);
        text += &format!(
            "\n{}#[derive(Debug, Clone, Copy)]\npub enum {name} {{}}\n\nimpl Event for {name} {{\n    \
             const PROGRAM: Program = PROGRAM;\n    const NUMBER: i32 = {};\n    \
             const NAME: &'static str = \"{}\";\n    type Message = {};\n}}\n",
            doc(&event.doc, ""),
            event.number,
            event.name,
            event.message.as_deref().unwrap_or("()")
        );
    }
    text
}

/// The table of all calls and events, by number.
pub(super) fn entries(module: &Module) -> String {
    if module.program.is_none() {
        return String::new();
    }
    let calls = module
        .calls
        .iter()
        .map(|call| (call.number, format!("Entry::call::<procedure::{}>()", names::camel(&call.name))));
    let events = module
        .events
        .iter()
        .map(|event| (event.number, format!("Entry::event::<event::{}>()", names::camel(&event.name))));
    let mut rows: Vec<_> = calls.chain(events).collect();
    rows.sort();
    let rows: String = rows.into_iter().map(|(_, row)| format!("    {row},\n")).collect();
    format!("\n/// Every procedure and event, by number.\npub const ENTRIES: &[Entry] = &[\n{rows}];\n")
}
