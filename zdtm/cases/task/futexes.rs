//! Futexes: what they guard, who waits, and the list of those a dying thread leaves locked.

use std::sync::{Arc, Condvar, Mutex};

use zdtm::{Case, Child, Mapping, PAGE, Result, Team, check, check_eq, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("mutex-contended", contended),
    Case::new("condvar", condvar),
    Case::new("clear-child-tid", clear_child_tid),
    Case::new("robust-list", robust_list),
    Case::new("robust-mutex", robust_mutex),
];

/// One thread holds it, ten wait for it.
fn contended() -> Result<()> {
    let mutex = Arc::new(Mutex::new(0u32));
    let held = mutex.lock().or_else(|_| zdtm::bail!("poisoned"))?;
    let threads: Vec<_> = (0..10)
        .map(|_| {
            let mutex = Arc::clone(&mutex);
            std::thread::spawn(move || mutex.lock().map(|mut count| *count += 1).is_ok())
        })
        .collect();
    std::thread::sleep(std::time::Duration::from_millis(20));
    zdtm::checkpoint()?;
    check!(
        threads.iter().all(|thread| !thread.is_finished()),
        "somebody got it"
    );
    drop(held);
    for thread in threads {
        check!(thread.join().unwrap_or(false));
    }
    check_eq!(mutex.lock().map_or(0, |count| *count), 10);
    Ok(())
}

fn condvar() -> Result<()> {
    let pair = Arc::new((Mutex::new(false), Condvar::new()));
    let waiter = {
        let pair = Arc::clone(&pair);
        std::thread::spawn(move || {
            let guard = pair.0.lock().ok()?;
            pair.1.wait_while(guard, |set| !*set).ok().map(|set| *set)
        })
    };
    std::thread::sleep(std::time::Duration::from_millis(20));
    zdtm::checkpoint()?;
    check!(!waiter.is_finished());
    if let Ok(mut set) = pair.0.lock() {
        *set = true;
    }
    pair.1.notify_all();
    check_eq!(waiter.join().ok().flatten(), Some(true));
    Ok(())
}

/// The word that the kernel clears when a thread ends: a thread is waited for by it, and its address is told
/// by prctl(2) per thread.
fn clear_child_tid() -> Result<()> {
    fn get() -> Result<usize> {
        let mut address = 0usize;
        // SAFETY: the word lives through the call.
        ret(unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut address) })?;
        Ok(address)
    }
    let team = Team::start(3, |_, set_up| {
        let before = get()?;
        check!(before != 0, "libc registers one for each thread");
        set_up();
        zdtm::wait();
        check_eq!(get()?, before);
        Ok(())
    })?;
    // A process of its own may have none; one is registered here, and its own word is no libc's.
    let word = Mapping::anonymous(PAGE)?;
    let child = Child::spawn("registers another", move || {
        // SAFETY: the mapping lives for as long as this process.
        ret(unsafe { libc::syscall(libc::SYS_set_tid_address, word.pointer()) })?;
        Child::checkpoint();
        check_eq!(get()?, word.address());
        Ok(())
    })?;
    zdtm::checkpoint()?;
    team.join()?;
    child.finish()
}

/// The address and length that set_robust_list(2) was told, per thread.
fn robust_list() -> Result<()> {
    fn get() -> Result<(usize, usize)> {
        let (mut head, mut length) = (0usize, 0usize);
        // SAFETY: both words live through the call.
        ret(unsafe {
            libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut length)
        })?;
        Ok((head, length))
    }
    let team = Team::start(3, |_, set_up| {
        let before = get()?;
        check!(before.0 != 0, "libc registers one for each thread");
        set_up();
        zdtm::wait();
        check_eq!(get()?, before);
        Ok(())
    })?;
    let before = get()?;
    zdtm::checkpoint()?;
    check_eq!(get()?, before);
    team.join()?;
    Ok(())
}

/// A child that dies after the restore with a robust mutex locked: the next one to lock it is told.
fn robust_mutex() -> Result<()> {
    let shared = Mapping::shared(PAGE)?;
    let mutex = shared.pointer().cast::<libc::pthread_mutex_t>();
    // SAFETY: the page is shared, zeroed and large enough; it is never moved.
    unsafe {
        let mut attributes = std::mem::zeroed();
        libc::pthread_mutexattr_init(&raw mut attributes);
        libc::pthread_mutexattr_setpshared(&raw mut attributes, libc::PTHREAD_PROCESS_SHARED);
        libc::pthread_mutexattr_setrobust(&raw mut attributes, libc::PTHREAD_MUTEX_ROBUST);
        check_eq!(libc::pthread_mutex_init(mutex, &raw const attributes), 0);
    }
    let child = Child::spawn("owner", move || {
        // SAFETY: initialised by the parent before the fork.
        let failed = unsafe { libc::pthread_mutex_lock(shared.pointer().cast()) };
        check_eq!(failed, 0);
        Child::checkpoint();
        Ok(())
    })?;
    zdtm::checkpoint()?;
    // SAFETY: initialised above.
    check_eq!(unsafe { libc::pthread_mutex_trylock(mutex) }, libc::EBUSY);
    child.finish()?;
    // SAFETY: initialised above.
    check_eq!(unsafe { libc::pthread_mutex_lock(mutex) }, libc::EOWNERDEAD);
    Ok(())
}
