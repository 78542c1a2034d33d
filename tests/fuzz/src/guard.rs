//! What ends a search although the code under test would go on: panics that it catches, and allocations without measure.
//! libFuzzer watches the process as a whole, its memory and its time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::panic::PanicHookInfo;

/// Largest single allocation. A value of a model may have 1 GiB for one sample (`models/float`), a request 16 MiB.
pub const LARGEST: usize = (1 << 30) + (1 << 20);

/// Whose panics end the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panics {
    /// All.
    All,
    /// All but tract's own: it panics on odd models, and the loader turns that into an error.
    AllButTract,
}

impl Panics {
    /// Whether this panic ends the search.
    pub fn counts(self, panic: &PanicHookInfo<'_>) -> bool {
        let in_tract = panic.location().is_some_and(|place| place.file().contains("/tract-"));
        self == Panics::All || !in_tract
    }
}

/// Ends the process at such a panic, caught or not: libFuzzer then keeps the input. Replaces libFuzzer's own hook.
pub fn end_at(panics: Panics) {
    std::panic::set_hook(Box::new(move |panic| {
        if panics.counts(panic) {
            eprintln!("{panic}\n{}", Backtrace::force_capture());
            std::process::abort();
        }
    }));
}

/// The system's allocator, which ends the process where more than [`LARGEST`] bytes are wanted at once.
#[derive(Debug)]
struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

fn admit(bytes: usize) {
    if bytes > LARGEST {
        // What this needs is far below the bound.
        eprintln!("{bytes} bytes are wanted at once\n{}", Backtrace::force_capture());
        std::process::abort();
    }
}

// SAFETY: every call goes on to the system's allocator unchanged, or ends the process.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        admit(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        admit(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        admit(size);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(place, layout) }
    }
}
