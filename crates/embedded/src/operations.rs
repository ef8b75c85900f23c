//! The operations that wait for the writer, and the responses that wait for their batch. Nothing here
//! decides or stores.

use rusqlite::Connection;
use seckill_engine::{Effect, Fault, OrderRefused, Replies, Reply};
use seckill_sale::{
    Attempt, NewSale, Order, OrderChange, OrderId, Sale, SaleChange, SaleId, SaleRefused, Verdict,
};
use tokio::sync::oneshot;

type ReplySender<T> = oneshot::Sender<Result<T, Fault>>;

/// The results of one call of `decide`.
type Verdicts = Vec<Result<Verdict, Fault>>;

/// An operation for the writer.
pub(crate) enum Op {
    /// A single attempt, without the lists of [`Op::Decide`].
    Submit(u128, Attempt, Reply),
    Decide(Vec<(u128, Attempt)>, oneshot::Sender<Verdicts>),
    ChangeOrder(
        OrderId,
        OrderChange,
        ReplySender<Result<Order, OrderRefused>>,
    ),
    CreateSale(NewSale, ReplySender<Result<Sale, SaleRefused>>),
    ChangeSale(SaleId, SaleChange, ReplySender<Result<Sale, SaleRefused>>),
    /// Answered once everything queued before it has been answered.
    Barrier(ReplySender<()>),
    /// A view of file and gate at the same time, between two batches.
    View(ReplySender<View>),
}

/// A read transaction, and the free units of each item of each sale at the same time.
pub(crate) struct View {
    pub(crate) conn: Connection,
    pub(crate) free: Vec<(SaleId, Vec<u32>)>,
}

impl Op {
    /// Answers an operation that was not carried out.
    fn fail(self, fault: &Fault, replies: &mut Replies) {
        let fault = || Fault::without_effect(fault.cause, fault.detail.clone());
        match self {
            Self::Decide(attempts, to) => {
                drop(to.send(attempts.iter().map(|_| Err(fault())).collect()));
            }
            Self::Submit(_, _, reply) => replies.push(reply, Err(fault())),
            Self::ChangeOrder(_, _, to) => drop(to.send(Err(fault()))),
            Self::CreateSale(_, to) | Self::ChangeSale(_, _, to) => drop(to.send(Err(fault()))),
            Self::Barrier(to) => drop(to.send(Err(fault()))),
            Self::View(to) => drop(to.send(Err(fault()))),
        }
    }
}

/// A response that waits for its batch to become durable.
pub(crate) enum Response {
    Submitted(Verdict, Reply),
    Decide(Verdicts, oneshot::Sender<Verdicts>),
    ChangeOrder(
        Result<Order, OrderRefused>,
        ReplySender<Result<Order, OrderRefused>>,
    ),
    Sale(
        Result<Sale, SaleRefused>,
        ReplySender<Result<Sale, SaleRefused>>,
    ),
    Barrier(ReplySender<()>),
    ViewWanted(ReplySender<View>),
    View(Box<Result<View, Fault>>, ReplySender<View>),
}

impl Response {
    /// The receiver may be gone, which is not an error.
    fn send(self, replies: &mut Replies) {
        match self {
            Self::Submitted(verdict, reply) => replies.push(reply, Ok(verdict)),
            Self::Decide(verdicts, to) => drop(to.send(verdicts)),
            Self::ChangeOrder(answer, to) => drop(to.send(Ok(answer))),
            Self::Sale(answer, to) => drop(to.send(Ok(answer))),
            Self::Barrier(to) => drop(to.send(Ok(()))),
            Self::View(answer, to) => drop(to.send(*answer)),
            // Not reached: the view is made before the response is sent. The receiver would report
            // that the engine stopped.
            Self::ViewWanted(to) => drop(to),
        }
    }

    /// Reports a failed batch: either nothing was done, or the effect is unknown.
    fn send_failed(self, fault: &Fault, replies: &mut Replies) {
        let after_failure = |verdict: Result<Verdict, Fault>| match (verdict, fault.effect) {
            // The client can ask for the order by its id.
            (Ok(Verdict::Claimed(claim) | Verdict::Repeat { claim, .. }), Effect::Unknown) => {
                Ok(Verdict::Pending(claim.order_id))
            }
            (Ok(Verdict::Mismatch), Effect::Unknown) => Err(fault.clone()),
            // A rejection may depend on a claim of the same batch, so it must not be sent.
            _ => Err(Fault::without_effect(fault.cause, fault.detail.clone())),
        };
        match self {
            Self::Submitted(verdict, reply) => replies.push(reply, after_failure(Ok(verdict))),
            Self::Decide(verdicts, to) => {
                drop(to.send(verdicts.into_iter().map(after_failure).collect()));
            }
            Self::ChangeOrder(_, to) => drop(to.send(Err(fault.clone()))),
            Self::Sale(_, to) => drop(to.send(Err(fault.clone()))),
            Self::Barrier(to) => drop(to.send(Err(fault.clone()))),
            Self::View(_, to) | Self::ViewWanted(to) => drop(to.send(Err(fault.clone()))),
        }
    }
}

pub(crate) fn send_all(responses: Vec<Response>) {
    let mut replies = Replies::default();
    for response in responses {
        response.send(&mut replies);
    }
}

/// Answers everything in a failed batch: what was decided and what was not.
pub(crate) fn fail_all(decided: Vec<Response>, rest: impl IntoIterator<Item = Op>, fault: &Fault) {
    let mut replies = Replies::default();
    for response in decided {
        response.send_failed(fault, &mut replies);
    }
    for op in rest {
        op.fail(fault, &mut replies);
    }
}
