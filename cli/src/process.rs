//! The process around a command: runtime, logs, and the signals that end it.
//! What a command does with the end is its own matter.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// The asynchronous runtime of the program.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    raise_file_limit();
    bound_allocator();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime can't be started")
}

/// glibc keeps an arena a thread, and learns from the first freed model to keep all that is as large: after a round of ten
/// 10 MB updates a coordinator held 239 MB, and 98 MB with these bounds. What is over 1 MiB goes back at once.
fn bound_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: `mallopt` only stores numbers, under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 << 20);
    }
}

/// Gives memory that nobody uses back to the system: loading a model takes several times what serving it needs, and most of
/// the program's code (reading ONNX, optimizing, quantizing) is not run again until the next one.
pub(crate) fn release_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    // SAFETY: `malloc_trim` looks at free memory alone, under the allocator's own locks. `let_go_of_pages` is called for each
    // object that is loaded, with what its headers say of it.
    unsafe {
        libc::malloc_trim(0);
        libc::dl_iterate_phdr(Some(let_go_of_pages), std::ptr::null_mut());
    }
}

/// Lets go of the pages of an object's code and constants: those that are used next come back from the page cache, 16 at a
/// time, within microseconds; the others no longer count as this process's.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
unsafe extern "C" fn let_go_of_pages(
    object: *mut libc::dl_phdr_info,
    _: libc::size_t,
    _: *mut libc::c_void,
) -> libc::c_int {
    const PAGE: usize = 4096;
    // SAFETY: the loader hands over a valid description whose headers live as long as the object.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr as usize, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
    };
    for header in headers {
        // Never writable: pages of the file that nobody can have changed, so nothing is lost. What the loader relocated is in
        // a segment that was writable then.
        let unchanged = header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
        let start = base + header.p_vaddr as usize;
        // The mapping begins with the page that the segment begins in.
        let (page, end) = (start & !(PAGE - 1), start + header.p_memsz as usize);
        if unchanged {
            // SAFETY: the range is mapped from the object's file; dropped pages are read from it again when they are run.
            unsafe { libc::madvise(page as *mut libc::c_void, end - page, libc::MADV_DONTNEED) };
        }
    }
    0
}

/// A coordinator has a connection a node, and the soft limit is 1024 on many systems: take what the system grants.
fn raise_file_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        // Without it, the limit that there is holds; connections beyond it are refused.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// Logs to standard error, at this level unless `FEDGE_LOG` says otherwise, and as JSON, a line an event, where
/// `FEDGE_LOG_FORMAT=json`. tract warns of every operator set above 18.
pub(crate) fn log(level: &str) {
    let filter =
        EnvFilter::try_from_env("FEDGE_LOG").unwrap_or_else(|_| EnvFilter::new(format!("{level},tract_onnx=error")));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call (in tests) changes nothing.
    let _ = match std::env::var("FEDGE_LOG_FORMAT").as_deref() {
        Ok("json") => log.json().flatten_event(true).try_init(),
        _ => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
}

/// Ready when the process is asked to end: Ctrl-C, SIGTERM, or, with `with_input`, the end of standard input, by which a
/// parent takes its children along however it ends.
pub(crate) async fn asked_to_end(with_input: bool) {
    let input = async {
        if !with_input {
            return std::future::pending().await;
        }
        // A thread of its own: a blocked read of the runtime would hold the process at its end.
        let (ended, end) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            let _ = ended.send(());
        });
        let _ = end.await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated() => {}
        () = input => {}
    }
}

#[cfg(unix)]
async fn terminated() {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn terminated() {
    std::future::pending().await
}
