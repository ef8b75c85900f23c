//! Classifies answers by status and body. Reads only the one member that tells them apart.

use seckill_api::{AttemptAnswer, AttemptResult, LoadOutcome as Outcome, ProblemKind, ProblemType};

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

fn result_of(body: &[u8]) -> Option<AttemptResult> {
    let answer: AttemptAnswer = serde_json::from_slice(body).ok()?;
    Some(answer.result)
}

fn problem_of(body: &[u8]) -> Option<ProblemType> {
    let problem: ProblemKind = serde_json::from_slice(body).ok()?;
    Some(problem.problem_type)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
