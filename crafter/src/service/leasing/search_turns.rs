//! Limits the acquisition of ports: one call of each user at a time, and a single turn of any call before other tasks
//! of the thread run.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Semaphores with one permit each: one for each user's calls, and one for the turns of all calls.
pub(in crate::service) struct SearchTurns {
    users: RefCell<HashMap<u32, Rc<Semaphore>>>,
    one: Semaphore,
}

impl Default for SearchTurns {
    fn default() -> Self {
        Self { users: RefCell::default(), one: Semaphore::new(1) }
    }
}

impl SearchTurns {
    /// Waits until no other call of `user` acquires ports, and runs `work`. So a user with many calls gets as many
    /// turns as a user with one.
    pub(super) async fn alone<T>(&self, user: u32, work: impl Future<Output = T>) -> T {
        let own = self.users.borrow_mut().entry(user).or_insert_with(|| Rc::new(Semaphore::new(1))).clone();
        // Tokio's semaphore is fair, and this one is never closed.
        let permit = own.acquire().await;
        let done = work.await;
        drop(permit);
        drop(own);
        self.users.borrow_mut().retain(|other, semaphore| *other != user || Rc::strong_count(semaphore) > 1);
        done
    }

    /// Waits for a turn. Hold the result until other tasks have run.
    pub(super) async fn one(&self) -> Option<SemaphorePermit<'_>> {
        self.one.acquire().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    /// Several searches of 10 turns each; returns whose turns they were.
    async fn order(searches: &[u32]) -> Vec<u32> {
        let (turns, order) = (Rc::new(SearchTurns::default()), Rc::new(RefCell::new(Vec::new())));
        // What the service does for others in between.
        let served = Rc::new(Cell::new(0));
        let others = spawn_local({
            let served = served.clone();
            async move {
                loop {
                    served.set(served.get() + 1);
                    yield_now().await;
                }
            }
        });
        let searches: Vec<_> = searches
            .iter()
            .map(|&user| {
                let (turns, order) = (turns.clone(), order.clone());
                spawn_local(async move {
                    let search = async {
                        for _ in 0..10 {
                            let _turn = turns.one().await;
                            order.borrow_mut().push(user);
                            yield_now().await;
                        }
                    };
                    turns.alone(user, search).await;
                })
            })
            .collect();
        for search in searches {
            search.await.unwrap();
        }
        others.abort();
        assert!(turns.users.borrow().is_empty());
        assert!(served.get() >= order.borrow().len() / 2, "others were served {} times", served.get());
        order.take()
    }

    #[tokio::test]
    async fn many_calls_of_one_user_do_not_delay_another() {
        let order = LocalSet::new().run_until(order(&[[1; 20].as_slice(), &[2]].concat())).await;
        assert_eq!(order.len(), 210);
        let last = order.iter().rposition(|user| *user == 2).unwrap();
        assert!(last < 25, "the turns of user 2 alternate with those of user 1: {last}");
    }
}
