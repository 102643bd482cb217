//! Asks in one statement what many callers ask at once. While an answer is on its way questions gather,
//! and then they go together: who comes alone waits for nobody. No answer is older than its question.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tonic::Status;

/// Questions of one kind, each with who waits for its answer.
pub(crate) struct Gather<Q, A> {
    waiting: Mutex<Waiting<Q, A>>,
    /// Most questions that are asked together.
    most: usize,
    /// Most answers that are on their way at once.
    lanes: usize,
}

struct Waiting<Q, A> {
    questions: Vec<(Q, oneshot::Sender<A>)>,
    busy: usize,
}

impl<Q: Send + 'static, A: Send + 'static> Gather<Q, A> {
    /// Nothing asked yet.
    pub(crate) fn new(most: usize, lanes: usize) -> Arc<Self> {
        let waiting = Waiting { questions: Vec::new(), busy: 0 };
        Arc::new(Self { waiting: Mutex::new(waiting), most, lanes })
    }

    /// Asks. `answer` gives one answer for each question, in their order; every caller names the same.
    pub(crate) async fn ask<F>(
        self: &Arc<Self>,
        question: Q,
        answer: impl Fn(Vec<Q>) -> F + Send + 'static,
    ) -> Result<A, Status>
    where
        F: Future<Output = Vec<A>> + Send + 'static,
    {
        let (hand, answered) = oneshot::channel();
        let is_free = {
            let mut waiting = self.lock();
            waiting.questions.push((question, hand));
            let is_free = waiting.busy < self.lanes;
            waiting.busy += usize::from(is_free);
            is_free
        };
        if is_free {
            // Apart from the caller, who may go while others wait for the same answer.
            tokio::spawn(Lane(Some(self.clone())).run(answer));
        }
        answered.await.map_err(|_| Status::internal("the broker failed; its log has the reason"))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<Q, A>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is asked next. `None`: nothing, and the lane is free.
    fn next(&self) -> Option<Vec<(Q, oneshot::Sender<A>)>> {
        let mut waiting = self.lock();
        if waiting.questions.is_empty() {
            waiting.busy -= 1;
            return None;
        }
        let count = waiting.questions.len().min(self.most);
        Some(waiting.questions.drain(..count).collect())
    }
}

/// One answer after the other until nobody asks.
struct Lane<Q: Send + 'static, A: Send + 'static>(Option<Arc<Gather<Q, A>>>);

impl<Q: Send + 'static, A: Send + 'static> Lane<Q, A> {
    async fn run<F: Future<Output = Vec<A>> + Send>(
        mut self,
        answer: impl Fn(Vec<Q>) -> F + Send + 'static,
    ) {
        let Some(gather) = self.0.clone() else { return };
        while let Some(asked) = gather.next() {
            let (questions, hands): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
            for (hand, answer) in hands.into_iter().zip(answer(questions).await) {
                // Who asked may be gone.
                let _ = hand.send(answer);
            }
        }
        self.0 = None;
    }
}

impl<Q: Send + 'static, A: Send + 'static> Drop for Lane<Q, A> {
    /// A lane that broke is free again, and nobody waits for it.
    fn drop(&mut self) {
        if let Some(gather) = self.0.take() {
            let mut waiting = gather.lock();
            waiting.busy -= 1;
            waiting.questions.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    /// Answers each question with how many were asked together, once it may.
    async fn count(gate: &Semaphore, questions: Vec<u32>) -> Vec<(u32, usize)> {
        gate.acquire().await.unwrap().forget();
        let together = questions.len();
        questions.into_iter().map(|it| (it, together)).collect()
    }

    #[tokio::test]
    async fn what_is_asked_while_an_answer_is_on_its_way_is_asked_together() {
        let gather = Gather::new(4, 1);
        let gate = Arc::new(Semaphore::new(0));
        let ask = |question: u32| {
            let (gather, gate) = (gather.clone(), gate.clone());
            async move {
                let answer = move |questions| {
                    let gate = gate.clone();
                    async move { count(&gate, questions).await }
                };
                gather.ask(question, answer).await.unwrap()
            }
        };
        let first = tokio::spawn(ask(0));
        while gather.lock().busy == 0 || !gather.lock().questions.is_empty() {
            tokio::task::yield_now().await;
        }
        let rest = tokio::spawn(join_all((1..=6).map(ask)));
        while gather.lock().questions.len() < 6 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(3);
        assert_eq!(first.await.unwrap(), (0, 1), "who comes alone waits for nobody");
        let rest = rest.await.unwrap();
        assert_eq!(rest, [(1, 4), (2, 4), (3, 4), (4, 4), (5, 2), (6, 2)]);
        assert_eq!(gather.lock().busy, 0);
    }

    #[tokio::test]
    async fn a_lane_that_broke_leaves_nobody_waiting() {
        let gather = Gather::<u32, u32>::new(4, 1);
        let broken = async |_| panic!("broken on purpose");
        assert!(gather.ask(1, broken).await.is_err());
        let whole = async |questions: Vec<u32>| questions;
        assert_eq!(gather.ask(2, whole).await.unwrap(), 2);
    }
}
