//! How the verdict of a submitted attempt returns to the event loop that waits for it: without a boxed
//! future, and with one wake-up of the loop for all verdicts of a batch. Nothing here decides.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use seckill_sale::Verdict;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

use crate::Fault;

/// What [`Engine::submit`](crate::Engine::submit) returns.
#[derive(Debug)]
pub enum Submitted {
    /// The attempt is decided.
    Now(Result<Verdict, Fault>),
    /// The ticket will have its verdict.
    Later(Ticket),
}

impl Submitted {
    /// Waits for the verdict, unless it is there.
    pub async fn verdict(self) -> Result<Verdict, Fault> {
        match self {
            Self::Now(verdict) => verdict,
            Self::Later(ticket) => ticket.await,
        }
    }
}

/// Why a ticket has no verdict. The attempt may have taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoReply {
    /// The deadline passed.
    Deadline,
    /// The engine stopped.
    Stopped,
}

/// The result of an attempt without a reply. It is a function and a number, so that a ticket needs no
/// allocation for it.
#[derive(Debug, Clone, Copy)]
pub struct WithoutReply {
    /// The attempt's number within the engine.
    pub number: u128,
    pub result: fn(u128, NoReply) -> Result<Verdict, Fault>,
}

pin_project! {
    /// Completes with the verdict of a submitted attempt, at the latest at its deadline.
    #[derive(Debug)]
    pub struct Ticket {
        verdict: oneshot::Receiver<Result<Verdict, Fault>>,
        #[pin]
        deadline: Sleep,
        without_reply: WithoutReply,
    }
}

impl Future for Ticket {
    type Output = Result<Verdict, Fault>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ticket = self.project();
        let missing = match Pin::new(ticket.verdict).poll(context) {
            Poll::Ready(Ok(verdict)) => return Poll::Ready(verdict),
            Poll::Ready(Err(_)) => NoReply::Stopped,
            Poll::Pending => match ticket.deadline.poll(context) {
                Poll::Ready(()) => NoReply::Deadline,
                Poll::Pending => return Poll::Pending,
            },
        };
        let WithoutReply { number, result } = *ticket.without_reply;
        Poll::Ready(result(number, missing))
    }
}

/// A verdict on its way to its ticket.
type Delivery = (
    oneshot::Sender<Result<Verdict, Fault>>,
    Result<Verdict, Fault>,
);

/// Where the verdicts for one event loop are posted.
#[derive(Debug, Clone)]
pub struct Mailbox(Option<Arc<mpsc::UnboundedSender<Vec<Delivery>>>>);

/// Delivers what is posted to a mailbox. Each event loop runs the deliveries of its mailbox, since waking
/// a task of the own loop takes no system call.
#[derive(Debug)]
pub struct Deliveries(mpsc::UnboundedReceiver<Vec<Delivery>>);

impl Mailbox {
    /// The mailbox of an event loop. It has no bound of its own: the engine's queue bounds the attempts
    /// whose verdicts it can hold.
    pub fn new() -> (Self, Deliveries) {
        let (post, posted) = mpsc::unbounded_channel();
        (Self(Some(Arc::new(post))), Deliveries(posted))
    }

    /// A mailbox without a loop: each verdict is sent to its ticket at once.
    pub fn direct() -> Self {
        Self(None)
    }

    /// A ticket with a deadline, and the reply that it waits for. Must be called within a Tokio
    /// runtime.
    pub fn ticket(&self, wait: Duration, without_reply: WithoutReply) -> (Reply, Ticket) {
        let (to, verdict) = oneshot::channel();
        let mailbox = self.clone();
        let deadline = tokio::time::sleep(wait);
        let ticket = Ticket {
            verdict,
            deadline,
            without_reply,
        };
        (Reply { to, mailbox }, ticket)
    }

    fn is_same(&self, other: &Self) -> bool {
        self.0.as_ref().map(Arc::as_ptr) == other.0.as_ref().map(Arc::as_ptr)
    }

    fn post(&self, deliveries: Vec<Delivery>) {
        let unposted = match &self.0 {
            Some(post) => post.send(deliveries).err().map(|unsent| unsent.0),
            None => Some(deliveries),
        };
        // Without a loop, and after the end of one: its tickets are gone, or somebody else polls them.
        deliver(unposted.unwrap_or_default());
    }
}

/// The receiver of a verdict may be gone, which is not an error.
fn deliver(deliveries: Vec<Delivery>) {
    for (to, verdict) in deliveries {
        drop(to.send(verdict));
    }
}

impl Deliveries {
    /// Delivers until all mailboxes and replies of the loop are gone.
    pub async fn run(mut self) {
        while let Some(posted) = self.0.recv().await {
            deliver(posted);
        }
    }
}

/// The one reply to a submitted attempt. [`Replies`] sends it.
#[derive(Debug)]
pub struct Reply {
    to: oneshot::Sender<Result<Verdict, Fault>>,
    mailbox: Mailbox,
}

impl Reply {
    /// Whether nobody waits for the verdict any more.
    pub fn is_closed(&self) -> bool {
        self.to.is_closed()
    }
}

/// The verdicts of a batch, which are posted together when this is dropped.
#[derive(Debug, Default)]
pub struct Replies(Vec<(Mailbox, Vec<Delivery>)>);

impl Replies {
    pub fn push(&mut self, reply: Reply, verdict: Result<Verdict, Fault>) {
        let Reply { to, mailbox } = reply;
        // There are as many mailboxes as event loops: a few.
        let known = self.0.iter_mut().find(|(known, _)| known.is_same(&mailbox));
        match known {
            Some((_, deliveries)) => deliveries.push((to, verdict)),
            None => self.0.push((mailbox, vec![(to, verdict)])),
        }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        for (mailbox, deliveries) in self.0.drain(..) {
            mailbox.post(deliveries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cause;
    use seckill_sale::Rejection;

    const WAIT: Duration = Duration::from_secs(60);
    const SOLD_OUT: Result<Verdict, Fault> = Ok(Verdict::Rejected(Rejection::SoldOut));

    fn without_reply() -> WithoutReply {
        WithoutReply {
            number: 7,
            result: |number, missing| {
                Err(Fault::unknown(
                    Cause::Deadline,
                    format!("{number} {missing:?}"),
                ))
            },
        }
    }

    fn missing(verdict: Result<Verdict, Fault>) -> String {
        verdict.unwrap_err().detail
    }

    fn send(reply: Reply) {
        Replies::default().push(reply, SOLD_OUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_has_the_verdict_that_was_sent() {
        let (reply, ticket) = Mailbox::direct().ticket(WAIT, without_reply());
        send(reply);
        assert_eq!(ticket.await, SOLD_OUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_without_a_reply_says_why() {
        let (reply, ticket) = Mailbox::direct().ticket(WAIT, without_reply());
        drop(reply);
        assert_eq!(missing(ticket.await), "7 Stopped");
        let (reply, ticket) = Mailbox::direct().ticket(WAIT, without_reply());
        assert_eq!(missing(ticket.await), "7 Deadline");
        assert!(reply.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_verdicts_of_a_batch_are_delivered_by_the_loop_of_each() {
        let ((one, ours), (other, theirs)) = (Mailbox::new(), Mailbox::new());
        let mailboxes = [&one, &other, &one, &Mailbox::direct()];
        let (mut replies, mut tickets) = (Replies::default(), Vec::new());
        for mailbox in mailboxes {
            let (reply, ticket) = mailbox.ticket(WAIT, without_reply());
            replies.push(reply, SOLD_OUT);
            tickets.push(ticket);
        }
        drop(replies);
        let ours = tokio::spawn(ours.run());
        for ticket in [tickets.remove(0), tickets.remove(1), tickets.remove(1)] {
            assert_eq!(ticket.await, SOLD_OUT);
        }
        // The other loop does not run.
        assert_eq!(missing(tickets.remove(0).await), "7 Deadline");
        drop((one, theirs));
        ours.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn verdicts_for_a_loop_that_has_ended_are_not_lost() {
        let (mailbox, deliveries) = Mailbox::new();
        drop(deliveries);
        let (reply, ticket) = mailbox.ticket(WAIT, without_reply());
        send(reply);
        assert_eq!(ticket.await, SOLD_OUT);
    }
}
