//! Texts and attributes a few elements down, where an empty one counts as absent.

use crate::conf::xml::Element;

/// The element that `path` leads to.
pub(super) fn element<'a>(from: Element<'a>, path: &[&str]) -> Option<Element<'a>> {
    path.iter().try_fold(from, |here, name| here.child(name))
}

pub(super) fn text(from: Element<'_>, path: &[&str]) -> Option<Box<str>> {
    element(from, path).map(|found| found.text()).filter(|text| !text.is_empty()).map(|text| (*text).into())
}

pub(super) fn attribute<'a>(from: Element<'a>, path: &[&str], name: &str) -> Option<&'a str> {
    element(from, path)?.attribute(name).filter(|text| !text.is_empty())
}

/// A path without doubled and trailing slashes; two at its beginning mean something elsewhere and stay.
pub fn clean_path(path: &str) -> Box<str> {
    let leading = path.chars().take_while(|char| *char == '/').count();
    let prefix = match leading {
        0 => "",
        2 => "//",
        _ => "/",
    };
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    format!("{prefix}{}", parts.join("/")).into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn paths_are_cleaned_as_libvirt_does() {
        for (path, clean) in [
            ("/a//b/", "/a/b"),
            ("//a", "//a"),
            ("///a", "/a"),
            ("/", "/"),
            ("a/", "a"),
            ("/a/../b", "/a/../b"),
        ] {
            assert_eq!(&*super::clean_path(path), clean, "{path}");
        }
    }
}
