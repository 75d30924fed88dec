//! On whose behalf something is done: what each log line of a call says beside what happened.
//!
//! It is kept beside the task that runs, not in a span of `tracing`: a call costs nothing for it but a pointer
//! until something is logged.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

/// One call of one client.
#[derive(Clone)]
pub struct Context {
    who: Arc<dyn fmt::Display + Send + Sync>,
    serial: u32,
    api: &'static str,
}

thread_local! {
    /// Set while code of a call runs on this thread, and for no longer.
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// Puts back what was there before, also when the code in between panics.
struct Restore(Option<Context>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

impl Context {
    pub fn new(who: Arc<dyn fmt::Display + Send + Sync>, serial: u32, api: &'static str) -> Self {
        Self { who, serial, api }
    }

    /// Runs something on behalf of this call.
    pub fn scope<R>(self, run: impl FnOnce() -> R) -> R {
        let _restore = Restore(CURRENT.replace(Some(self)));
        run()
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { who, serial, api } = self;
        write!(f, "call{{{who} serial={serial} api={api}}}")
    }
}

/// The call that runs on this thread now.
pub fn current() -> Option<Context> {
    CURRENT.with_borrow(Clone::clone)
}

/// A future that goes on on behalf of the call that makes it, wherever it runs.
pub fn carried<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let context = current();
    async move {
        let mut future = pin!(future);
        poll_fn(|task| match &context {
            Some(context) => context.clone().scope(|| future.as_mut().poll(task)),
            None => future.as_mut().poll(task),
        })
        .await
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use super::*;

    #[tokio::test]
    async fn it_follows_a_future_and_ends_with_the_scope() {
        let context = Context::new(Arc::new("client=1"), 7, "virDomainCreate");
        let said = || current().map(|context| context.to_string());
        let carried = context.scope(|| {
            carried(async move {
                tokio::task::yield_now().await;
                said()
            })
        });
        assert_eq!(said(), None);
        let other = Context::new(Arc::new("client=2"), 1, "virDomainDestroy");
        let panics = AssertUnwindSafe(|| other.scope(|| std::panic::resume_unwind(Box::new(()))));
        let _: Result<(), _> = std::panic::catch_unwind(panics);
        assert_eq!(said(), None);
        let told = tokio::spawn(carried).await.unwrap();
        assert_eq!(told.unwrap(), "call{client=1 serial=7 api=virDomainCreate}");
    }
}
