//! System V semaphores: semget(2).

use std::io;

use libc::{IPC_CREAT, IPC_EXCL, IPC_NOWAIT, IPC_PRIVATE, IPC_RMID, SEM_UNDO, c_int, sembuf};
use zdtm::{Case, Child, Result, check, check_eq, ret};

pub(crate) const CASES: &[Case] = &[
    Case::new("sem", values),
    Case::new("sem-many", many),
    Case::new("sem-undo", undo),
    Case::new("sem-undo-thread", undo_of_threads),
    Case::new("sem-undo-large", undo_large),
    Case::new("sem-blocked", blocked),
];

const KEY: i32 = 0x5a44_0002;

fn make(key: i32, count: c_int) -> io::Result<c_int> {
    // SAFETY: takes numbers.
    ret(unsafe { libc::semget(key, count, 0o620 | IPC_CREAT | IPC_EXCL) })
}

fn control(id: c_int, num: c_int, command: c_int, value: c_int) -> io::Result<c_int> {
    // SAFETY: only called with commands that take a number or nothing.
    ret(unsafe { libc::semctl(id, num, command, value) })
}

fn value(id: c_int, num: c_int) -> io::Result<c_int> {
    control(id, num, libc::GETVAL, 0)
}

fn pid(id: c_int, num: c_int) -> io::Result<c_int> {
    control(id, num, libc::GETPID, 0)
}

fn operate(id: c_int, num: u16, by: i16, flags: c_int) -> io::Result<()> {
    let flags = i16::try_from(flags).unwrap_or(0);
    let mut op = sembuf {
        sem_num: num,
        sem_op: by,
        sem_flg: flags,
    };
    // SAFETY: one operation.
    ret(unsafe { libc::semop(id, &mut op, 1) }).map(drop)
}

fn remove(id: c_int) -> io::Result<()> {
    control(id, 0, IPC_RMID, 0).map(drop)
}

/// Values, keys, and who operated each last.
fn values() -> Result<()> {
    let id = make(KEY, 3)?;
    control(id, 0, libc::SETVAL, 7)?;
    operate(id, 1, 5, 0)?;
    let child = Child::spawn("child", move || {
        operate(id, 2, 32767, 0)?;
        Child::checkpoint();
        check_eq!(pid(id, 2)?, std::process::id().cast_signed());
        Ok(())
    })?;
    zdtm::checkpoint()?;
    check_eq!([value(id, 0)?, value(id, 1)?, value(id, 2)?], [7, 5, 32767]);
    // SAFETY: takes numbers.
    check_eq!(ret(unsafe { libc::semget(KEY, 3, 0) })?, id);
    let own = std::process::id().cast_signed();
    check_eq!([pid(id, 0)?, pid(id, 1)?], [own, own]);
    check_eq!(pid(id, 2)?, child.pid().as_raw());
    child.finish()?;
    let mut stat = std::mem::MaybeUninit::<libc::semid_ds>::zeroed();
    // SAFETY: the structure is large enough, and numbers all through.
    let stat = unsafe {
        ret(libc::semctl(id, 0, libc::IPC_STAT, stat.as_mut_ptr()))?;
        stat.assume_init()
    };
    check_eq!(u32::from(stat.sem_perm.mode), 0o620);
    Ok(remove(id)?)
}

/// More than go into one batch, and two sets.
fn many() -> Result<()> {
    let count = 6000;
    let (one, other) = (make(IPC_PRIVATE, count)?, make(IPC_PRIVATE, 1)?);
    for num in (0..count).step_by(7) {
        control(one, num, libc::SETVAL, num)?;
    }
    control(other, 0, libc::SETVAL, 1)?;
    zdtm::checkpoint()?;
    for num in 0..count {
        check_eq!(value(one, num)?, if num % 7 == 0 { num } else { 0 });
    }
    check_eq!(value(other, 0)?, 1);
    remove(other)?;
    Ok(remove(one)?)
}

/// Who ends gives back what it took, and takes back what it gave.
fn undo() -> Result<()> {
    let id = make(IPC_PRIVATE, 4)?;
    control(id, 0, libc::SETVAL, 1)?;
    control(id, 1, libc::SETVAL, 10)?;
    let child = Child::spawn("child", move || {
        operate(id, 0, -1, SEM_UNDO)?;
        operate(id, 1, 5, SEM_UNDO)?;
        // Given and taken: nothing is left to undo.
        operate(id, 2, 3, SEM_UNDO)?;
        operate(id, 2, -3, SEM_UNDO)?;
        Child::checkpoint();
        Ok(())
    })?;
    // The parent was the last to operate what the child owes.
    operate(id, 1, 1, 0)?;
    operate(id, 3, 2, SEM_UNDO)?;
    zdtm::checkpoint()?;
    check_eq!(
        [value(id, 0)?, value(id, 1)?, value(id, 2)?, value(id, 3)?],
        [0, 16, 0, 2]
    );
    let taken = operate(id, 0, -1, IPC_NOWAIT);
    check!(taken.is_err(), "the child has it");
    check_eq!(pid(id, 0)?, child.pid().as_raw());
    check_eq!(pid(id, 1)?, std::process::id().cast_signed());
    child.finish()?;
    check_eq!(
        [value(id, 0)?, value(id, 1)?, value(id, 2)?, value(id, 3)?],
        [1, 11, 0, 2]
    );
    Ok(remove(id)?)
}

/// Threads share what they owe, and give it back when the last of them ends.
fn undo_of_threads() -> Result<()> {
    let id = make(IPC_PRIVATE, 1)?;
    control(id, 0, libc::SETVAL, 4)?;
    let child = Child::spawn("child", move || {
        let thread = std::thread::spawn(move || {
            operate(id, 0, -1, SEM_UNDO)?;
            Child::set_up();
            zdtm::wait();
            operate(id, 0, -1, SEM_UNDO)
        });
        operate(id, 0, -1, SEM_UNDO)?;
        zdtm::wait();
        thread.join().expect("it does not panic")?;
        check_eq!(value(id, 0)?, 1);
        Ok(())
    })?;
    // The main thread of the child may be behind the other.
    while value(id, 0)? != 2 {
        std::thread::yield_now();
    }
    zdtm::checkpoint()?;
    check_eq!(value(id, 0)?, 2);
    child.finish()?;
    check_eq!(value(id, 0)?, 4);
    Ok(remove(id)?)
}

/// The largest and the smallest sums there are, on full and on empty semaphores.
fn undo_large() -> Result<()> {
    const MOST: i16 = 32767;
    let id = make(IPC_PRIVATE, 4)?;
    control(id, 0, libc::SETVAL, MOST.into())?;
    control(id, 1, libc::SETVAL, MOST.into())?;
    let child = Child::spawn("child", move || {
        operate(id, 0, -MOST, SEM_UNDO)?;
        operate(id, 1, -1234, SEM_UNDO)?;
        operate(id, 2, MOST, SEM_UNDO)?;
        operate(id, 3, 4321, SEM_UNDO)?;
        operate(id, 3, -21, 0)?;
        Child::checkpoint();
        Ok(())
    })?;
    zdtm::checkpoint()?;
    let all = || -> Result<[c_int; 4]> {
        Ok([value(id, 0)?, value(id, 1)?, value(id, 2)?, value(id, 3)?])
    };
    check_eq!(all()?, [0, 31533, 32767, 4300]);
    // It takes back no more than there is.
    control(id, 3, libc::GETVAL, 0)?;
    child.finish()?;
    check_eq!(all()?, [32767, 32767, 0, 0]);
    Ok(remove(id)?)
}

/// A call that waits goes on waiting.
fn blocked() -> Result<()> {
    let id = make(IPC_PRIVATE, 2)?;
    let child = Child::spawn("child", move || {
        Child::set_up();
        operate(id, 0, -2, 0)?;
        Ok(operate(id, 1, 1, 0)?)
    })?;
    while control(id, 0, libc::GETNCNT, 0)? == 0 {
        std::thread::yield_now();
    }
    operate(id, 0, 1, 0)?;
    zdtm::checkpoint()?;
    check_eq!(value(id, 0)?, 1);
    operate(id, 0, 1, 0)?;
    operate(id, 1, -1, 0)?;
    child.join()?;
    check_eq!(value(id, 0)?, 0);
    Ok(remove(id)?)
}
