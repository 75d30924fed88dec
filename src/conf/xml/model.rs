//! The two macros that declare models.
//!
//! # `xml!` with a struct: one line per field
//!
//! `KIND(when) field: Type = "name", or DEFAULT;`. The order of attribute lines is the order of attributes
//! in the output, the order of the other lines that of children. The type says whether the field may be
//! absent (`Option`) or repeated (`Vec`); a bare type must be there.
//!
//! | kind | where it lives |
//! |---|---|
//! | `attr` | attribute `name` |
//! | `child` | child element `name`, read and written by the type's [`Part`](super::Part) |
//! | `block` | as `child` with an `Option`, but start and end tag stand on their own lines even when bare |
//! | `group` | the same, but absent reads as `Default` and a bare element is not written |
//! | `text` | text of child element `name` |
//! | `flag` | `bool`: whether the empty child element `name` is there |
//! | `child_attr` | the only attribute of a child element: `= "child" / "attribute"` |
//! | `list` | `Vec` of elements inside a wrapper: `= "wrapper" / "item"`; an empty one leaves no wrapper |
//! | `body` | the element's own text (`Option`) |
//! | `flat` | a nested [`Part`](super::Part) whose attributes and children stand in this same element |
//! | `skip` | not in the text at all: `Default` when read |
//!
//! | when | |
//! |---|---|
//! | `(live)` | read and written in the live form only |
//! | `(secret)` | written only with [`Form::SECURE`](super::Form::SECURE) |
//! | `(local)` | not written in the migratable form |
//! | `(omit)` | with a default: not written when equal to it |
//!
//! # `xml!` with an enum: a choice by attribute
//!
//! `enum E by "attribute" or "value-when-absent" { "tag" => Variant(Part), "tag" => Variant, }`. The variant's
//! part is read from the same element, so it carries exactly what that choice needs. Use it as a `flat`
//! field, or as the `Part` of an element of its own.
//!
//! # `xml_enum!`: a list of words
//!
//! `enum E { Variant = "word", }` implements [`Value`](super::Value), `as_str` and `ALL`. Where libvirt has a
//! sentence of its own for another word: `refuse |place, text| ConfError…` after the list.

macro_rules! xml {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $(
                $(#[$field_meta:meta])*
                $kind:ident $(($when:ident))? $field:ident : $type:ty
                    $(= $xml:literal $(/ $item:literal)?)? $(, or $default:expr)?;
            )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        $vis struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl $crate::conf::xml::Part for $name {
            fn read(element: $crate::conf::xml::Element<'_>) -> $crate::conf::Result<Self> {
                Ok(Self {
                    $($field: $crate::conf::xml::xml!(
                        @read $kind [$($when)?] element, $type, [$($xml $(/ $item)?)?], [$($default)?]
                    ),)*
                })
            }

            #[allow(unused_variables)] // a model may have no attributes, or nothing else
            fn write_attributes(&self, out: &mut $crate::conf::xml::Writer) {
                $($crate::conf::xml::xml!(
                    @attribute $kind [$($when)?] self.$field, $type, out, [$($xml $(/ $item)?)?], [$($default)?]
                );)*
            }

            #[allow(unused_variables)]
            fn write_children(&self, out: &mut $crate::conf::xml::Writer) {
                $($crate::conf::xml::xml!(
                    @child $kind [$($when)?] self.$field, $type, out, [$($xml $(/ $item)?)?]
                );)*
            }
        }
    };

    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident by $attribute:literal $(or $absent:literal)? {
            $($(#[$variant_meta:meta])* $tag:literal => $variant:ident $(($inner:ty))?,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        $vis enum $name {
            $($(#[$variant_meta])* $variant $(($inner))?,)*
        }

        impl $name {
            /// The word that selects this variant.
            pub fn tag(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $tag,)*
                }
            }
        }

        impl $crate::conf::xml::Part for $name {
            fn read(element: $crate::conf::xml::Element<'_>) -> $crate::conf::Result<Self> {
                let chosen = element.attribute($attribute) $(.or(Some($absent)))?;
                match chosen {
                    $(Some($tag) => Ok(
                        Self::$variant $((<$inner as $crate::conf::xml::Part>::read(element)?))?
                    ),)*
                    Some(other) => Err($crate::conf::ConfError::invalid_attribute(
                        $attribute, element.name(), other, "",
                    )),
                    None => Err($crate::conf::ConfError::missing_attribute($attribute, element.name())),
                }
            }

            fn write_attributes(&self, out: &mut $crate::conf::xml::Writer) {
                out.attribute_str($attribute, self.tag());
                $($(
                    if let Self::$variant(inner) = self {
                        <$inner as $crate::conf::xml::Part>::write_attributes(inner, out);
                    }
                )?)*
            }

            #[allow(unused_variables)] // no variant may carry anything
            fn write_children(&self, out: &mut $crate::conf::xml::Writer) {
                $($(
                    if let Self::$variant(inner) = self {
                        <$inner as $crate::conf::xml::Part>::write_children(inner, out);
                    }
                )?)*
            }
        }
    };

    // Reading: `live` fields only in the live form.
    (@read $kind:ident [live] $element:ident, $type:ty, $xml:tt, $default:tt) => {
        if $element.form().contains($crate::conf::xml::Form::LIVE) {
            $crate::conf::xml::xml!(@read $kind [] $element, $type, $xml, $default)
        } else {
            <$type>::default()
        }
    };
    (@read attr [$($when:ident)?] $element:ident, $type:ty, [$xml:literal], []) => {
        <$type as $crate::conf::xml::AttrField>::read($element, $xml)?
    };
    (@read attr [$($when:ident)?] $element:ident, $type:ty, [$xml:literal], [$default:expr]) => {
        match $element.value::<$type>($xml)? {
            Some(value) => value,
            None => $default,
        }
    };
    (@read child [$($when:ident)?] $element:ident, $type:ty, [$xml:literal], []) => {
        <$type as $crate::conf::xml::ChildField>::read($element, $xml)?
    };
    (@read block [$($when:ident)?] $element:ident, $type:ty, [$xml:literal], []) => {
        <$type as $crate::conf::xml::ChildField>::read($element, $xml)?
    };
    (@read group [$($when:ident)?] $element:ident, $type:ty, [$xml:literal], []) => {
        match $element.child($xml) {
            Some(child) => <$type as $crate::conf::xml::Part>::read(child)?,
            None => <$type>::default(),
        }
    };
    (@read text [$($when:ident)?] $element:ident, $type:ty, [$xml:literal], []) => {
        <$type as $crate::conf::xml::TextField>::read($element, $xml)?
    };
    (@read text [$($when:ident)?] $element:ident, $type:ty, [$xml:literal], [$default:expr]) => {
        match <Option<$type> as $crate::conf::xml::TextField>::read($element, $xml)? {
            Some(value) => value,
            None => $default,
        }
    };
    (@read flag [$($when:ident)?] $element:ident, $type:ty, [$xml:literal], []) => {
        $element.child($xml).is_some()
    };
    (@read child_attr [$($when:ident)?] $element:ident, $type:ty, [$xml:literal / $item:literal], []) => {
        match $element.child($xml) {
            Some(child) => <$type as $crate::conf::xml::AttrField>::read(child, $item)?,
            None => <$type>::default(),
        }
    };
    (@read list [$($when:ident)?] $element:ident, $type:ty, [$xml:literal / $item:literal], []) => {
        match $element.child($xml) {
            Some(child) => <$type as $crate::conf::xml::ChildField>::read(child, $item)?,
            None => <$type>::default(),
        }
    };
    (@read body [$($when:ident)?] $element:ident, $type:ty, [], []) => {
        $crate::conf::xml::read_body($element)?
    };
    (@read flat [$($when:ident)?] $element:ident, $type:ty, [], []) => {
        <$type as $crate::conf::xml::Part>::read($element)?
    };
    (@read skip [$($when:ident)?] $element:ident, $type:ty, [], []) => {
        <$type>::default()
    };

    // Writing: some fields depend on the form or on their value.
    (@$pass:ident $kind:ident [live] $self:ident.$field:ident, $($rest:tt)*) => {
        $crate::conf::xml::xml!(@when Form::LIVE, @$pass $kind [] $self.$field, $($rest)*)
    };
    (@$pass:ident $kind:ident [secret] $self:ident.$field:ident, $($rest:tt)*) => {
        $crate::conf::xml::xml!(@when Form::SECURE, @$pass $kind [] $self.$field, $($rest)*)
    };
    (@$pass:ident $kind:ident [local] $self:ident.$field:ident, $type:ty, $out:ident, $($rest:tt)*) => {
        if !$out.form().contains($crate::conf::xml::Form::MIGRATABLE) {
            $crate::conf::xml::xml!(@$pass $kind [] $self.$field, $type, $out, $($rest)*);
        }
    };
    (@when Form::$form:ident, @$pass:ident $kind:ident [] $self:ident.$field:ident, $type:ty, $out:ident, $($rest:tt)*) => {
        if $out.form().contains($crate::conf::xml::Form::$form) {
            $crate::conf::xml::xml!(@$pass $kind [] $self.$field, $type, $out, $($rest)*);
        }
    };
    (@attribute attr [omit] $self:ident.$field:ident, $type:ty, $out:ident, [$xml:literal], [$default:expr]) => {
        if $self.$field != $default {
            <$type as $crate::conf::xml::AttrField>::write(&$self.$field, $out, $xml);
        }
    };
    (@attribute attr [] $self:ident.$field:ident, $type:ty, $out:ident, [$xml:literal], $default:tt) => {
        <$type as $crate::conf::xml::AttrField>::write(&$self.$field, $out, $xml);
    };
    (@attribute flat [] $self:ident.$field:ident, $type:ty, $out:ident, [], []) => {
        <$type as $crate::conf::xml::Part>::write_attributes(&$self.$field, $out);
    };
    (@attribute $kind:ident $($rest:tt)*) => {};

    (@child child [] $self:ident.$field:ident, $type:ty, $out:ident, [$xml:literal]) => {
        <$type as $crate::conf::xml::ChildField>::write(&$self.$field, $out, $xml);
    };
    (@child block [] $self:ident.$field:ident, $type:ty, $out:ident, [$xml:literal]) => {
        if let Some(part) = &$self.$field {
            $out.block($xml, |out| {
                $crate::conf::xml::Part::write_attributes(part, out);
                $crate::conf::xml::Part::write_children(part, out);
            });
        }
    };
    (@child group [] $self:ident.$field:ident, $type:ty, $out:ident, [$xml:literal]) => {
        <$type as $crate::conf::xml::Part>::write_group(&$self.$field, $out, $xml);
    };
    (@child text [] $self:ident.$field:ident, $type:ty, $out:ident, [$xml:literal]) => {
        <$type as $crate::conf::xml::TextField>::write(&$self.$field, $out, $xml);
    };
    (@child flag [] $self:ident.$field:ident, $type:ty, $out:ident, [$xml:literal]) => {
        if $self.$field {
            $out.empty($xml);
        }
    };
    (@child child_attr [] $self:ident.$field:ident, $type:ty, $out:ident, [$xml:literal / $item:literal]) => {
        $out.group($xml, |out| <$type as $crate::conf::xml::AttrField>::write(&$self.$field, out, $item));
    };
    (@child list [] $self:ident.$field:ident, $type:ty, $out:ident, [$xml:literal / $item:literal]) => {
        $out.group($xml, |out| <$type as $crate::conf::xml::ChildField>::write(&$self.$field, out, $item));
    };
    (@child body [] $self:ident.$field:ident, $type:ty, $out:ident, []) => {
        if let Some(value) = &$self.$field {
            $out.body(value);
        }
    };
    (@child flat [] $self:ident.$field:ident, $type:ty, $out:ident, []) => {
        <$type as $crate::conf::xml::Part>::write_children(&$self.$field, $out);
    };
    (@child attr $($rest:tt)*) => {};
    (@child skip $($rest:tt)*) => {};
}

macro_rules! xml_enum {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)*
        }
        $(refuse |$place:ident, $text:ident| $refusal:expr)?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name {
            $($(#[$variant_meta])* $variant,)*
        }

        impl $name {
            /// Every variant, in libvirt's order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            /// The variant that word stands for.
            pub fn from_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }

        impl $crate::conf::xml::Value for $name {
            fn parse(text: &str) -> Option<Self> {
                Self::from_word(text)
            }

            fn print(&self, out: &mut String) {
                out.push_str(self.as_str());
            }

            $(
                fn refuse($place: $crate::conf::xml::Place<'_>, $text: &str) -> $crate::conf::ConfError {
                    $refusal
                }
            )?
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

pub(crate) use {xml, xml_enum};
