//! How a field of a model finds its place in an element: one trait per kind of place.
//!
//! Each is implemented for `T` (must be there), `Option<T>` and, where it makes sense, `Vec<T>`, so the
//! field's type alone says whether it may be absent or repeated.

use super::{Element, Place, Value, Writer};
use crate::conf::{ConfError, Result};

/// What an element, or a part of one, holds. Usually made by [`crate::conf::xml::xml!`]; written by hand
/// where libvirt's form is irregular.
pub trait Part: Sized {
    fn read(element: Element<'_>) -> Result<Self>;

    fn write_attributes(&self, out: &mut Writer) {
        let _ = out;
    }

    fn write_children(&self, out: &mut Writer) {
        let _ = out;
    }

    /// The whole element.
    fn write(&self, out: &mut Writer, name: &str) {
        out.element(name, |out| {
            self.write_attributes(out);
            self.write_children(out);
        });
    }

    /// The whole element, unless it would be bare.
    fn write_group(&self, out: &mut Writer, name: &str) {
        out.group(name, |out| {
            self.write_attributes(out);
            self.write_children(out);
        });
    }
}

impl<T: Part> Part for Box<T> {
    fn read(element: Element<'_>) -> Result<Self> {
        T::read(element).map(Box::new)
    }

    fn write_attributes(&self, out: &mut Writer) {
        T::write_attributes(self, out);
    }

    fn write_children(&self, out: &mut Writer) {
        T::write_children(self, out);
    }

    fn write(&self, out: &mut Writer, name: &str) {
        T::write(self, out, name);
    }

    fn write_group(&self, out: &mut Writer, name: &str) {
        T::write_group(self, out, name);
    }
}

/// A field that is an attribute.
pub trait AttrField: Sized {
    fn read(element: Element<'_>, name: &str) -> Result<Self>;
    fn write(&self, out: &mut Writer, name: &str);
}

impl<V: Value> AttrField for V {
    fn read(element: Element<'_>, name: &str) -> Result<Self> {
        element.required(name)
    }

    fn write(&self, out: &mut Writer, name: &str) {
        out.attribute(name, self);
    }
}

impl<V: Value> AttrField for Option<V> {
    fn read(element: Element<'_>, name: &str) -> Result<Self> {
        element.value(name)
    }

    fn write(&self, out: &mut Writer, name: &str) {
        if let Some(value) = self {
            out.attribute(name, value);
        }
    }
}

/// A field that is a child element (`T`, `Option<T>`) or all children of a name (`Vec<T>`).
pub trait ChildField: Sized {
    fn read(element: Element<'_>, name: &str) -> Result<Self>;
    fn write(&self, out: &mut Writer, name: &str);
}

impl<T: Part> ChildField for T {
    fn read(element: Element<'_>, name: &str) -> Result<Self> {
        match element.child(name) {
            Some(child) => T::read(child),
            None => {
                let parent = element.name();
                Err(ConfError::xml(format!("missing element '{name}' in element '{parent}'")))
            }
        }
    }

    fn write(&self, out: &mut Writer, name: &str) {
        Part::write(self, out, name);
    }
}

impl<T: Part> ChildField for Option<T> {
    fn read(element: Element<'_>, name: &str) -> Result<Self> {
        element.child(name).map(T::read).transpose()
    }

    fn write(&self, out: &mut Writer, name: &str) {
        if let Some(part) = self {
            Part::write(part, out, name);
        }
    }
}

impl<T: Part> ChildField for Vec<T> {
    fn read(element: Element<'_>, name: &str) -> Result<Self> {
        let mut list = Self::new();
        for child in element.children().filter(|child| child.qualified_name() == name) {
            list.push(T::read(child)?);
        }
        list.shrink_to_fit();
        Ok(list)
    }

    fn write(&self, out: &mut Writer, name: &str) {
        for part in self {
            Part::write(part, out, name);
        }
    }
}

/// A field that is the text of a child element; an empty text counts as absent, as in XPath.
pub trait TextField: Sized {
    fn read(element: Element<'_>, name: &str) -> Result<Self>;
    fn write(&self, out: &mut Writer, name: &str);
}

impl<V: Value> TextField for V {
    fn read(element: Element<'_>, name: &str) -> Result<Self> {
        let found = <Option<V> as TextField>::read(element, name)?;
        found.ok_or_else(|| {
            let parent = element.name();
            ConfError::xml(format!("missing element '{name}' in element '{parent}'"))
        })
    }

    fn write(&self, out: &mut Writer, name: &str) {
        out.text_element(name, self);
    }
}

impl<V: Value> TextField for Option<V> {
    fn read(element: Element<'_>, name: &str) -> Result<Self> {
        let Some(child) = element.child(name) else { return Ok(None) };
        read_body(child)
    }

    fn write(&self, out: &mut Writer, name: &str) {
        if let Some(value) = self {
            out.text_element(name, value);
        }
    }
}

impl<V: Value> TextField for Vec<V> {
    fn read(element: Element<'_>, name: &str) -> Result<Self> {
        let mut list = Self::new();
        for child in element.children().filter(|child| child.qualified_name() == name) {
            list.extend(read_body(child)?);
        }
        Ok(list)
    }

    fn write(&self, out: &mut Writer, name: &str) {
        for value in self {
            out.text_element(name, value);
        }
    }
}

/// The element's own text as a value.
pub(crate) fn read_body<V: Value>(element: Element<'_>) -> Result<Option<V>> {
    let text = element.text();
    if text.is_empty() {
        return Ok(None);
    }
    match V::parse(&text) {
        Some(value) => Ok(Some(value)),
        None => {
            let place = Place { element: element.name(), attribute: None };
            Err(V::refuse(place, crate::conf::error::excerpt(&text)))
        }
    }
}
