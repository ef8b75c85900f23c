//! Classifies answers by status and body. Reads only the one member that tells them apart.

use std::sync::LazyLock;

use seckill_api::{AttemptAnswer, AttemptResult, LoadOutcome as Outcome, ProblemKind, ProblemType};
use serde::Serialize;

pub(crate) fn outcome_of(status: u16, is_replay: bool, body: &[u8]) -> Outcome {
    match status {
        200 | 201 => match result_of(body) {
            Some(AttemptResult::Won) if is_replay => Outcome::Repeat,
            Some(AttemptResult::Won) => Outcome::Won,
            Some(AttemptResult::SoldOut) => Outcome::SoldOut,
            Some(AttemptResult::Pending | AttemptResult::Accepted) | None => Outcome::Ok,
        },
        202 => Outcome::Pending,
        200..=299 => Outcome::Ok,
        503 => Outcome::Unavailable,
        403 | 409 | 410 | 422 => match problem_of(body) {
            Some(ProblemType::SoldOut) => Outcome::SoldOut,
            Some(ProblemType::NotEnoughLeft) => Outcome::NotEnoughLeft,
            Some(ProblemType::OrderEnded) => Outcome::Ended,
            Some(ProblemType::LimitReached) => Outcome::LimitReached,
            Some(ProblemType::NotOpen) => Outcome::NotOpen,
            Some(ProblemType::Closed) => Outcome::Closed,
            Some(ProblemType::IdempotencyKeyReused) => Outcome::Mismatch,
            _ => Outcome::Refused,
        },
        _ => Outcome::Refused,
    }
}

/// How the most frequent answers start. The service writes the member that is read here first, so
/// these answers need no parsing.
struct Starts {
    won: Vec<u8>,
    sold_out: Vec<u8>,
    sold_out_problem: Vec<u8>,
}

static STARTS: LazyLock<Starts> = LazyLock::new(|| {
    let of_result = |result| start_of(&AttemptAnswer { result });
    Starts {
        won: of_result(AttemptResult::Won),
        sold_out: of_result(AttemptResult::SoldOut),
        sold_out_problem: start_of(&ProblemKind {
            problem_type: ProblemType::SoldOut,
        }),
    }
});

/// An object's JSON without the closing brace.
fn start_of(value: &impl Serialize) -> Vec<u8> {
    let text = serde_json::to_vec(value);
    let mut text = text.unwrap_or_else(|error| unreachable!("JSON in memory: {error}"));
    text.pop();
    text
}

fn result_of(body: &[u8]) -> Option<AttemptResult> {
    if body.starts_with(&STARTS.sold_out) {
        return Some(AttemptResult::SoldOut);
    }
    if body.starts_with(&STARTS.won) {
        return Some(AttemptResult::Won);
    }
    let answer: AttemptAnswer = serde_json::from_slice(body).ok()?;
    Some(answer.result)
}

fn problem_of(body: &[u8]) -> Option<ProblemType> {
    if body.starts_with(&STARTS.sold_out_problem) {
        return Some(ProblemType::SoldOut);
    }
    let problem: ProblemKind = serde_json::from_slice(body).ok()?;
    Some(problem.problem_type)
}

#[cfg(test)]
mod tests {
    use super::*;
    use seckill_api::{Confirmation, OrderState, Problem};

    #[test]
    fn answers_are_classified() {
        let won = br#"{"result":"won","order_id":"o","unit":7,"remaining":93}"#;
        assert_eq!(outcome_of(200, false, won), Outcome::Won);
        assert_eq!(outcome_of(201, true, won), Outcome::Repeat);
        assert_eq!(
            outcome_of(200, false, br#"{"result":"sold_out"}"#),
            Outcome::SoldOut
        );
        let problem = br#"{"type":"urn:seckill:problem:limit-reached"}"#;
        assert_eq!(outcome_of(409, false, problem), Outcome::LimitReached);
        let ended = br#"{"type":"urn:seckill:problem:order-ended"}"#;
        assert_eq!(outcome_of(409, false, ended), Outcome::Ended);
        assert_eq!(outcome_of(409, false, b"{}"), Outcome::Refused);
        assert_eq!(outcome_of(200, false, b"hello"), Outcome::Ok);
        assert_eq!(outcome_of(503, false, b""), Outcome::Unavailable);
    }

    #[test]
    fn a_member_may_come_at_any_place() {
        let won = br#"{ "order_id":"o", "result":"won" }"#;
        assert_eq!(outcome_of(200, false, won), Outcome::Won);
        let problem = br#"{"status":409,"type":"urn:seckill:problem:sold-out"}"#;
        assert_eq!(outcome_of(409, false, problem), Outcome::SoldOut);
        let sold_out = br#"{"type":"urn:seckill:problem:sold-out","status":409}"#;
        assert_eq!(outcome_of(409, false, sold_out), Outcome::SoldOut);
        let left = br#"{"type":"urn:seckill:problem:not-enough-left","status":409}"#;
        assert_eq!(outcome_of(409, false, left), Outcome::NotEnoughLeft);
    }

    #[test]
    fn the_services_answers_start_as_expected() {
        let confirmation = Confirmation::new("o", &[], OrderState::Reserved, 0);
        let won = serde_json::to_vec(&confirmation).unwrap();
        assert!(won.starts_with(&STARTS.won));
        let problem = serde_json::to_vec(&Problem::new(ProblemType::SoldOut, "d")).unwrap();
        assert!(problem.starts_with(&STARTS.sold_out_problem));
    }
}
