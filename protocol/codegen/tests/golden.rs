//! Small texts: what each becomes, and what is said about each mistake.
//!
//! `golden/small.x` uses each part of the grammar once and becomes `golden/small.rs`; `UPDATE=1` rewrites it.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy does not take for tests

use std::path::PathBuf;

use ferrovirt_codegen::{Source, generate};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn each_part_of_the_grammar() {
    let text = std::fs::read_to_string(golden("small.x")).unwrap();
    let files = generate(&[Source { file: "small.x".into(), text }]).unwrap();
    let got: String = files.iter().map(|file| format!("// ---- {}\n{}", file.path, file.text)).collect();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(golden("small.rs"), &got).unwrap();
    }
    assert_eq!(got, std::fs::read_to_string(golden("small.rs")).unwrap());
}

#[test]
fn mistakes_are_named_with_their_line() {
    for (text, expected) in [
        ("programm p = 1 version 1;", "p.x:1: expected 'program' or 'types', found 'programm'"),
        ("types t;\nconst A = ;", "p.x:2: expected a number, found ';'"),
        ("types t;\nconst A = 12x;", "p.x:2: '12x' is not a number"),
        ("types t;\nconst A = 1;\nconst A = 2;", "p.x:3: 'A' is declared twice"),
        ("types t;\n/* no end", "p.x:2: comment is not closed"),
        ("types t;\n\n$", "p.x:3: unexpected character '$'"),
        ("types t;\nstruct s {\n    int a;\n    int a;\n};", "p.x:4: there are two fields 'a'"),
        ("types t;\nstruct s {\n    other a;\n};", "p.x:3: there is no type 'other' before this line"),
        ("types t;\nstruct s {\n    s a;\n};", "p.x:3: there is no type 's' before this line"),
        ("types t;\nstruct s {\n    int a<MAX>;\n};", "p.x:3: there is no constant 'MAX'"),
        ("types t;\nstruct s {\n    int a<-1>;\n};", "p.x:3: -1 is no size"),
        ("types t;\nstruct s {\n    string a;\n};", "p.x:3: opaque and string need a limit"),
        ("types t;\nstruct s {\n    int *a;\n};", "p.x:3: only text and structs may be absent"),
        (
            "types t;\nenum e { A = 1 };\nunion u switch (int x) {\n};",
            "p.x:3: a union is selected by an enum of this text",
        ),
        (
            "types t;\nenum e { A = 1 };\nunion u switch (e x) {\ncase B: int b;\n};",
            "p.x:4: 'B' is no member of the union's selector",
        ),
        ("types t;\ncall 1 x() acl none;", "p.x:2: only a program has calls and events"),
        ("program p = 1 version 1;\ncall 1 x();", "p.x:2: call 'x' does not say 'acl'"),
        ("program p = 1 version 1;\ncall 1 x() acl none;\nevent 1 y();", "p.x:3: 'y' has the number of 'x'"),
        ("program p = 1 version 1;\ncall 1 x() acl a:b if C;", "p.x:2: there is no flag 'C'"),
        (
            "program p = 1 version 1;\nflag C = 1;\ncall 1 x() acl a:b if C;",
            "p.x:3: no argument 'unsigned int flags'",
        ),
        (
            "program p = 1 version 1;\ncall 1 x() priority urgent acl none;",
            "p.x:2: expected 'low' or 'high', found 'urgent'",
        ),
        (
            "program p = 1 version 1;\ncall 1 x() fds stream up acl none;",
            "p.x:2: a stream carries no descriptors",
        ),
        ("program p = 1 version 1;\ncall 99999999999 x() acl none;", "p.x:2: 99999999999 is out of range"),
        ("types t;\nimport u { a };", "p.x:2: there is no earlier text 'u'"),
    ] {
        let source = Source { file: "p.x".into(), text: text.into() };
        match generate(&[source]) {
            Ok(_) => panic!("nobody minds: {text}"),
            Err(error) => assert_eq!(error.to_string(), expected),
        }
    }
}

#[test]
fn imported_types_are_reached_through_their_module() {
    let sources = [
        ("a.x", "types a;\nconst MAX = 9;\ntypedef string text<MAX>;\nstruct thing { text name; };"),
        ("b.x", "program b = 1 version 1;\nimport a { text, thing };\ncall 1 x(thing *t, text n) acl none;"),
    ]
    .map(|(file, text)| Source { file: file.into(), text: text.into() });
    let files = generate(&sources).unwrap();
    let find = |path: &str| &files.iter().find(|file| file.path == path).unwrap().text;
    assert!(find("b/types.rs").contains("pub t: Option<a::Thing>,"));
    assert!(find("b/codec.rs").contains("input.option(a::Thing::decode)"));
    assert!(find("b/codec.rs").contains("input.string(a::MAX)"));
}
