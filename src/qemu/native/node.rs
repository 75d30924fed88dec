//! An XML element that is put together.

use crate::conf::xml::Writer;

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Node {
    name: String,
    attributes: Vec<(String, String)>,
    children: Vec<Node>,
    text: Option<String>,
}

impl Node {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    pub(super) fn with_text(name: &str, text: impl Into<String>) -> Self {
        Self { text: Some(text.into()), ..Self::new(name) }
    }

    pub(super) fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.attributes.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn maybe(self, name: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.set(name, value),
            None => self,
        }
    }

    pub(super) fn with(mut self, child: Node) -> Self {
        self.children.push(child);
        self
    }

    pub(super) fn with_any(mut self, children: impl IntoIterator<Item = Node>) -> Self {
        self.children.extend(children);
        self
    }

    pub(super) fn push(&mut self, child: Node) {
        self.children.push(child);
    }

    pub(super) fn extend(&mut self, children: impl IntoIterator<Item = Node>) {
        self.children.extend(children);
    }

    /// An element without anything in it says nothing.
    pub(super) fn unless_empty(self) -> Option<Self> {
        let is_empty = self.attributes.is_empty() && self.children.is_empty() && self.text.is_none();
        (!is_empty).then_some(self)
    }

    pub(super) fn is(&self, name: &str) -> bool {
        self.name == name
    }

    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn child(&self, name: &str) -> Option<&Node> {
        self.children.iter().find(|child| child.is(name))
    }

    /// The child of that name, made where there is none.
    pub(super) fn child_mut(&mut self, name: &str) -> &mut Node {
        let at = self.children.iter().position(|child| child.is(name)).unwrap_or_else(|| {
            self.children.push(Node::new(name));
            self.children.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "the position was just found or made")]
        &mut self.children[at]
    }

    pub(super) fn put(&mut self, name: &str, value: impl ToString) {
        self.attributes.retain(|(key, _)| key != name);
        self.attributes.push((name.to_owned(), value.to_string()));
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.element(&self.name, |out| {
            self.attributes.iter().for_each(|(name, value)| out.attribute_str(name, value));
            self.children.iter().for_each(|child| child.write(out));
            if let Some(text) = &self.text {
                out.body(&text.as_str().to_owned().into_boxed_str());
            }
        });
    }
}
