//! A disk's images as a list, top first: what changes chains is said in positions.

use super::Nodes;
use crate::conf::devices::{Backing, Disk, Layer, LayerFormat, Storage};

/// The images without those below them, and how the chain ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Layers {
    images: Vec<Layer>,
    end: Option<Box<Backing>>,
}

impl Layers {
    pub fn of(disk: &Disk) -> Self {
        let format = LayerFormat { kind: disk.format(), metadata_cache: disk.driver.metadata_cache.clone() };
        Self::from_top(format, disk.storage.clone())
    }

    pub fn from_top(format: LayerFormat, storage: Storage) -> Self {
        let mut images = Vec::new();
        let mut next = Some(Layer { format, storage });
        let mut end = None;
        while let Some(mut layer) = next {
            next = match layer.storage.backing.take().map(|backing| *backing) {
                Some(Backing::Layer(below)) => Some(below),
                tail => {
                    end = tail.map(Box::new);
                    None
                }
            };
            images.push(layer);
        }
        Self { images, end }
    }

    pub fn images(&self) -> &[Layer] {
        &self.images
    }

    /// The block nodes of an image of a running guest.
    pub fn nodes(&self, position: usize) -> Option<Nodes> {
        let layer = self.images.get(position)?;
        Nodes::of(&layer.storage, layer.format.kind)
    }

    /// Where the image of this number is.
    pub fn position(&self, number: u32) -> Option<usize> {
        self.images.iter().position(|layer| layer.storage.index == Some(number))
    }

    /// Takes some images out.
    pub fn remove(&mut self, positions: std::ops::Range<usize>) -> Self {
        let last = positions.end.min(self.images.len());
        if last == self.images.len() {
            self.end = Some(Box::new(Backing::End));
        }
        let images = self.images.drain(positions.start.min(last)..last).collect();
        Self { images, end: Some(Box::new(Backing::End)) }
    }

    /// Puts the chain of `below` under the last image.
    pub fn stand_on(&mut self, below: Self) {
        self.images.extend(below.images);
        self.end = below.end;
    }

    /// Nothing is below the last image.
    pub fn end(&mut self) {
        self.end = Some(Box::new(Backing::End));
    }

    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Whether nothing is known of what is below the last image.
    pub fn is_open(&self) -> bool {
        self.end.is_none()
    }

    /// The chain under one head. None for no image.
    pub fn into_top(self) -> Option<Layer> {
        let Self { images, mut end } = self;
        let mut top = None;
        for mut layer in images.into_iter().rev() {
            layer.storage.backing = match top.take() {
                Some(below) => Some(Box::new(Backing::Layer(below))),
                None => end.take(),
            };
            top = Some(layer);
        }
        top
    }

    /// Makes these the images of a disk.
    pub fn install(self, disk: &mut Disk) {
        if let Some(Layer { format, storage }) = self.into_top() {
            disk.storage = storage;
            disk.driver.format = Some(format.kind);
            disk.driver.metadata_cache = format.metadata_cache;
        }
    }
}

/// A source of a running guest in the form that its definition has: without what was found out.
pub fn as_defined(storage: &Storage) -> Storage {
    let mut defined = storage.clone();
    let mut here = Some(&mut defined);
    while let Some(storage) = here {
        storage.index = None;
        let detected = std::mem::take(&mut storage.backing_detected);
        if detected && storage.layer().is_some() {
            storage.backing = None;
        }
        here = match storage.backing.as_deref_mut() {
            Some(Backing::Layer(layer)) => Some(&mut layer.storage),
            _ => None,
        };
    }
    defined
}
