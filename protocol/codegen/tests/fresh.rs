//! The committed output is what the texts generate. `UPDATE=1 cargo test -p ferrovirt-codegen` rewrites it.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy does not take for tests

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ferrovirt_codegen::{Source, generate};

fn protocol() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn generated() -> BTreeMap<PathBuf, String> {
    let sources: Vec<_> = ["net", "remote", "qemu", "admin", "keepalive"]
        .into_iter()
        .map(|name| {
            let path = protocol().join("x").join(name).with_extension("x");
            Source { file: format!("protocol/x/{name}.x"), text: std::fs::read_to_string(path).unwrap() }
        })
        .collect();
    match generate(&sources) {
        Ok(files) => files.into_iter().map(|file| (PathBuf::from(file.path), file.text)).collect(),
        Err(error) => panic!("{error}"),
    }
}

fn committed(root: &Path, below: &Path, files: &mut BTreeMap<PathBuf, String>) {
    let Ok(entries) = std::fs::read_dir(root.join(below)) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            committed(root, &path, files);
        } else {
            files.insert(path.clone(), std::fs::read_to_string(root.join(&path)).unwrap());
        }
    }
}

#[test]
fn committed_output_is_fresh() {
    let root = protocol().join("src/generated");
    let wanted = generated();
    let mut found = BTreeMap::new();
    committed(&root, Path::new(""), &mut found);
    if wanted == found {
        return;
    }
    if std::env::var_os("UPDATE").is_none() {
        let stale: Vec<_> = wanted
            .keys()
            .chain(found.keys())
            .filter(|path| wanted.get(*path) != found.get(*path))
            .map(|path| path.display().to_string())
            .collect();
        panic!("stale: {}; run `UPDATE=1 cargo test -p ferrovirt-codegen`", stale.join(", "));
    }
    let _ = std::fs::remove_dir_all(&root);
    for (path, text) in wanted {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}
