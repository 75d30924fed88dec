//! `types.rs`: structs as they are, enums as newtypes so that unknown values survive, unions as Rust enums.

use super::{doc, imports, rust_type};
use crate::model::{Body, Field, Module, Type};
use crate::wire::Wire;

pub(super) fn emit(module: &Module) -> String {
    let mut text = imports(module);
    for ty in &module.types {
        if !text.is_empty() {
            text += "\n";
        }
        text += &doc(&ty.doc, "");
        text += &derives(ty);
        text += &match &ty.body {
            Body::Enum(members) => {
                let constants: String = members
                    .iter()
                    .map(|member| {
                        doc(&member.doc, "    ")
                            + &format!("    pub const {}: Self = Self({});\n", member.name, member.value)
                    })
                    .collect();
                format!("pub struct {0}(pub i32);\n\nimpl {0} {{\n{constants}}}\n", ty.name)
            }
            Body::Struct(body) => {
                let fields: String = body
                    .iter()
                    .map(|field| {
                        doc(&field.doc, "    ")
                            + &format!("    pub {}: {},\n", field.name, rust_type(&field.wire))
                    })
                    .collect();
                format!("pub struct {} {{\n{fields}}}\n{}", ty.name, wiping(ty, body))
            }
            Body::Union(variants) => {
                let arms: String = variants
                    .iter()
                    .map(|variant| format!("    {}({}),\n", variant.name, rust_type(&variant.wire)))
                    .collect();
                let first = variants.first().map_or("", |variant| &variant.name);
                format!(
                    "pub enum {0} {{\n{arms}}}\n\nimpl Default for {0} {{\n    fn default() -> Self {{\n        \
                     Self::{first}(Default::default())\n    }}\n}}\n",
                    ty.name
                )
            }
        };
    }
    text
}

/// What has a secret in it is wiped, whoever drops it.
fn wiping(ty: &Type, fields: &[Field]) -> String {
    let is_wiped = |wire: &Wire| {
        let wire = if let Wire::Optional(inner) = wire { inner } else { wire };
        matches!(wire, Wire::Text { .. } | Wire::Opaque { .. } | Wire::Chars { .. })
    };
    let wiped: String = fields
        .iter()
        .filter(|field| ty.is_secret && is_wiped(&field.wire))
        .map(|field| format!("        zeroize::Zeroize::zeroize(&mut self.{});\n", field.name))
        .collect();
    if wiped.is_empty() {
        return wiped;
    }
    format!("\nimpl Drop for {} {{\n    fn drop(&mut self) {{\n{wiped}    }}\n}}\n", ty.name)
}

fn derives(ty: &Type) -> String {
    let mut derives = vec!["Debug", "Clone"];
    if ty.traits.copy {
        derives.push("Copy");
    }
    derives.push("PartialEq");
    if ty.traits.eq {
        derives.push("Eq");
    }
    match ty.body {
        Body::Enum(_) => derives.extend(["Hash", "Default"]),
        Body::Struct(_) => derives.push("Default"),
        Body::Union(_) => {}
    }
    format!("#[derive({})]\n", derives.join(", "))
}
