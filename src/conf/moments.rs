//! Moments of a domain that clients can come back to: a tree, by name, with one that is current.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A snapshot or a checkpoint.
pub trait Moment {
    fn name(&self) -> &str;
    fn parent(&self) -> Option<&str>;
}

/// Those of one domain.
#[derive(Debug, Clone)]
pub struct Moments<T> {
    all: BTreeMap<Box<str>, Arc<T>>,
    current: Option<Box<str>>,
}

impl<T> Default for Moments<T> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), current: None }
    }
}

impl<T: Moment> Moments<T> {
    pub fn get(&self, name: &str) -> Option<&Arc<T>> {
        self.all.get(name)
    }

    pub fn current(&self) -> Option<&Arc<T>> {
        self.get(self.current.as_deref()?)
    }

    pub fn is_current(&self, name: &str) -> bool {
        self.current.as_deref() == Some(name)
    }

    pub fn set_current(&mut self, name: Option<&str>) {
        self.current = name.map(Into::into);
    }

    pub fn insert(&mut self, moment: Arc<T>) {
        self.all.insert(moment.name().into(), moment);
    }

    pub fn remove(&mut self, name: &str) -> Option<Arc<T>> {
        if self.is_current(name) {
            self.current = None;
        }
        self.all.remove(name)
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.all.values()
    }

    /// One whose parent is not there has none.
    pub fn parent(&self, moment: &T) -> Option<&Arc<T>> {
        self.get(moment.parent()?)
    }

    /// Those right below one; without a name those that have no parent.
    pub fn children<'a>(&'a self, of: Option<&'a str>) -> impl Iterator<Item = &'a Arc<T>> {
        self.iter().filter(move |moment| self.parent(moment).map(|parent| parent.name()) == of)
    }

    pub fn is_leaf(&self, name: &str) -> bool {
        self.children(Some(name)).next().is_none()
    }

    /// Those anywhere below one, each behind its parent. A circle, which only a file edited by hand can have, is
    /// below nothing.
    pub fn descendants<'a>(&'a self, of: Option<&'a str>) -> Vec<&'a Arc<T>> {
        let mut found: Vec<_> = self.children(of).collect();
        let mut next = 0;
        while let Some(moment) = found.get(next).copied() {
            let at = next + 1;
            let below: Vec<_> =
                self.children(Some(moment.name())).filter(|it| Some(it.name()) != of).collect();
            found.splice(at..at, below);
            next = at;
            if found.len() > self.len() {
                break;
            }
        }
        found
    }

    /// Whether `ancestor` is anywhere above.
    pub fn is_below(&self, name: &str, ancestor: &str) -> bool {
        let parent = |name: &str| self.get(name).and_then(|moment| self.parent(moment));
        std::iter::successors(parent(name), |moment| self.parent(moment))
            .take(self.len())
            .any(|moment| moment.name() == ancestor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(&'static str, Option<&'static str>);

    impl Moment for Named {
        fn name(&self) -> &str {
            self.0
        }

        fn parent(&self) -> Option<&str> {
            self.1
        }
    }

    fn tree(moments: &[(&'static str, Option<&'static str>)]) -> Moments<Named> {
        let mut tree = Moments::default();
        moments.iter().for_each(|(name, parent)| tree.insert(Arc::new(Named(name, *parent))));
        tree
    }

    fn names<'a>(moments: impl IntoIterator<Item = &'a Arc<Named>>) -> String {
        moments.into_iter().map(|moment| moment.0).collect()
    }

    #[test]
    fn children_stand_behind_their_parents() {
        let tree =
            tree(&[("a", None), ("d", Some("a")), ("b", Some("d")), ("c", Some("a")), ("x", Some("gone"))]);
        assert_eq!(names(tree.descendants(None)), "acdbx");
        assert_eq!(names(tree.descendants(Some("a"))), "cdb");
        assert_eq!(names(tree.children(Some("a"))), "cd");
        assert!(tree.is_below("b", "a") && !tree.is_below("a", "b") && tree.is_leaf("c"));
    }

    #[test]
    fn a_circle_ends() {
        let tree = tree(&[("a", Some("b")), ("b", Some("a"))]);
        assert_eq!(names(tree.descendants(None)), "");
        assert!(tree.descendants(Some("a")).len() <= 3);
        assert!(!tree.is_below("a", "c"));
    }

    #[test]
    fn what_is_removed_is_not_current() {
        let mut tree = tree(&[("a", None)]);
        tree.set_current(Some("a"));
        assert_eq!(tree.current().map(|it| it.0), Some("a"));
        tree.remove("a");
        assert!(tree.current().is_none() && tree.is_empty());
    }
}
