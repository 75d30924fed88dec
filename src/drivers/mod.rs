//! What the API means: objects, lookups, jobs begun, events published.
