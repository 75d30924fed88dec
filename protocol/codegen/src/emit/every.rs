//! `every.rs`: what tests need to reach all types without naming them.

use super::imports;
use crate::model::{Body, Module};
use crate::names;
use crate::wire::Wire;

pub(super) fn emit(module: &Module) -> String {
    let mut text = imports(module);
    text += "use super::*;\n";
    text += if module.types.is_empty() {
        "use crate::every::Visitor;\n"
    } else {
        "use crate::every::{Sample, Source, Visitor};\n"
    };
    for ty in &module.types {
        let sample = match &ty.body {
            Body::Enum(_) => "Self(i32::sample(source))".to_owned(),
            Body::Struct(fields) => {
                let fields: String = fields
                    .iter()
                    .map(|field| format!("            {}: {},\n", field.name, sample(&field.wire)))
                    .collect();
                format!("Self {{\n{fields}        }}")
            }
            Body::Union(variants) => {
                let arms: String = variants
                    .iter()
                    .enumerate()
                    .map(|(index, variant)| {
                        let pattern =
                            if index + 1 == variants.len() { "_".to_owned() } else { index.to_string() };
                        format!(
                            "            {pattern} => Self::{}({}),\n",
                            variant.name,
                            sample(&variant.wire)
                        )
                    })
                    .collect();
                format!("match source.below({}) {{\n{arms}        }}", variants.len())
            }
        };
        text += &format!(
            "\nimpl Sample for {} {{\n    fn sample(source: &mut Source<'_>) -> Self {{\n        {sample}\n    }}\n}}\n",
            ty.name
        );
    }
    text + &visits(module)
}

fn visits(module: &Module) -> String {
    let mut visits = String::new();
    for ty in &module.types {
        visits += &format!("    visitor.data::<{0}>(\"{1}::{0}\");\n", ty.name, module.name);
    }
    for call in &module.calls {
        visits += &format!("    visitor.call::<procedure::{}>();\n", names::camel(&call.name));
    }
    for event in &module.events {
        visits += &format!("    visitor.event::<event::{}>();\n", names::camel(&event.name));
    }
    format!(
        "\n/// Shows `visitor` every type, call and event of this module.\n\
         #[allow(clippy::too_many_lines)] // a table\npub fn visit<V: Visitor>(visitor: &mut V) {{\n{visits}}}\n"
    )
}

fn sample(wire: &Wire) -> String {
    match wire {
        Wire::Scalar { rust, .. } => format!("{rust}::sample(source)"),
        Wire::Data { path, .. } => format!("{path}::sample(source)"),
        Wire::Text { max } => format!("source.text({max})"),
        Wire::Name { max } => format!("source.text({max}).into()"),
        Wire::Opaque { max } | Wire::Chars { max } => format!("source.bytes({max})"),
        Wire::FixedOpaque { .. } | Wire::FixedChars { .. } => "source.array()".to_owned(),
        Wire::Array { item, .. } => format!("std::array::from_fn(|_| {})", sample(item)),
        Wire::List { item, max } => format!("source.list({max}, |source| {})", sample(item)),
        Wire::Optional(item) => format!("source.option(|source| {})", sample(item)),
    }
}
