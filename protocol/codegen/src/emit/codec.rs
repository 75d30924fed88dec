//! `codec.rs`: the two directions of every type, one line per field.

use super::imports;
use crate::model::{Body, Field, Module, Type, Variant};
use crate::wire::Wire;

pub(super) fn emit(module: &Module) -> String {
    let unions = module.types.iter().any(|ty| matches!(ty.body, Body::Union(_)));
    let error = if unions { "DecodeError, " } else { "" };
    let mut text = imports(module);
    text += "use super::*;\n";
    text += &format!(
        "use crate::xdr::{{Decode, {error}DecodeResult, Decoder, Encode, EncodeResult, Encoder}};\n"
    );
    for ty in &module.types {
        let (encode, decode) = match &ty.body {
            Body::Enum(_) => ("self.0.encode(out)".to_owned(), "i32::decode(input).map(Self)".to_owned()),
            Body::Struct(fields) => (encode_struct(fields), decode_struct(fields)),
            Body::Union(variants) => (encode_union(variants), decode_union(ty, variants)),
        };
        text += &format!(
            "\nimpl Encode for {0} {{\n    fn encode(&self, out: &mut Encoder<'_>) -> EncodeResult {{\n        \
             {encode}\n    }}\n}}\n\nimpl Decode for {0} {{\n    const MIN_SIZE: usize = {1};\n\n    \
             fn decode(input: &mut Decoder<'_>) -> DecodeResult<Self> {{\n        {decode}\n    }}\n}}\n",
            ty.name, ty.min_size
        );
    }
    text
}

fn encode_struct(fields: &[Field]) -> String {
    let lines: Vec<_> =
        fields.iter().map(|field| encode(&field.wire, &format!("self.{}", field.name))).collect();
    lines.join("?;\n        ")
}

fn decode_struct(fields: &[Field]) -> String {
    let lines: String = fields
        .iter()
        .map(|field| format!("            {}: {}?,\n", field.name, decode(&field.wire)))
        .collect();
    format!("Ok(Self {{\n{lines}        }})")
}

fn encode_union(variants: &[Variant]) -> String {
    let arms: String = variants
        .iter()
        .map(|variant| {
            format!(
                "            Self::{}(value) => {{\n                {}i32.encode(out)?;\n                {}\n            }}\n",
                variant.name,
                variant.value,
                encode(&variant.wire, "value")
            )
        })
        .collect();
    format!("match self {{\n{arms}        }}")
}

fn decode_union(ty: &Type, variants: &[Variant]) -> String {
    let arms: String = variants
        .iter()
        .map(|variant| {
            format!(
                "            {} => {}.map(Self::{}),\n",
                variant.value,
                decode(&variant.wire),
                variant.name
            )
        })
        .collect();
    format!(
        "match i32::decode(input)? {{\n{arms}            value => Err(DecodeError::Arm {{ union: \"{}\", value }}),\n        }}",
        ty.name
    )
}

/// An expression that encodes `place`.
fn encode(wire: &Wire, place: &str) -> String {
    match wire {
        Wire::Scalar { .. } | Wire::Data { .. } | Wire::Array { .. } => format!("{place}.encode(out)"),
        Wire::Text { max } | Wire::Name { max } => format!("out.string({}, {max})", borrowed(place)),
        Wire::Opaque { max } => format!("out.opaque({}, {max})", borrowed(place)),
        Wire::FixedOpaque { .. } => format!("out.fixed_opaque({})", borrowed(place)),
        Wire::Chars { max } => format!("out.chars({}, {max})", borrowed(place)),
        Wire::FixedChars { .. } => format!("out.fixed_chars({})", borrowed(place)),
        Wire::List { item, max } => match &**item {
            Wire::Text { max: max_len } => format!("out.strings({}, {max}, {max_len})", borrowed(place)),
            _ => format!("out.list({}, {max})", borrowed(place)),
        },
        Wire::Optional(item) => match &**item {
            Wire::Text { max } => {
                format!("out.option({place}.as_deref(), |out, text| out.string(text, {max}))")
            }
            _ => format!("out.option({place}.as_ref(), |out, value| value.encode(out))"),
        },
    }
}

/// A field is borrowed on the way, the value of a matched arm is borrowed already.
fn borrowed(place: &str) -> String {
    if place.starts_with("self.") { format!("&{place}") } else { place.to_owned() }
}

/// An expression that decodes one value.
fn decode(wire: &Wire) -> String {
    match wire {
        Wire::Scalar { rust, .. } => format!("{rust}::decode(input)"),
        Wire::Data { path, .. } => format!("{path}::decode(input)"),
        Wire::Array { item, len } => match &**item {
            Wire::Scalar { rust, .. } => format!("<[{rust}; {len}]>::decode(input)"),
            _ => String::new(),
        },
        Wire::Text { max } => format!("input.string({max})"),
        Wire::Name { max } => format!("input.string({max}).map(Into::into)"),
        Wire::Opaque { max } => format!("input.opaque({max}).map(Vec::from)"),
        Wire::FixedOpaque { .. } => "input.fixed_opaque()".to_owned(),
        Wire::Chars { max } => format!("input.chars({max})"),
        Wire::FixedChars { .. } => "input.fixed_chars()".to_owned(),
        Wire::List { item, max } => match &**item {
            Wire::Text { max: max_len } => format!("input.strings({max}, {max_len})"),
            _ => format!("input.list({max})"),
        },
        Wire::Optional(item) => match &**item {
            Wire::Text { max } => format!("input.option(|input| input.string({max}))"),
            Wire::Data { path, .. } => format!("input.option({path}::decode)"),
            _ => String::new(),
        },
    }
}
