//! Writes records to the order log. Records are queued immediately and acknowledged later. Must not
//! keep records: those that fail stay in the outbox.

use std::time::Duration;

use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, config::RDKafkaLogLevel, error::KafkaError};
use seckill_engine::Fault;
use tokio::sync::mpsc;

use super::{ClientEvents, LogCondition};
use crate::codec::message::CLAIM;
use crate::options::ClusterOptions;

/// The delivery report of a record.
#[derive(Debug)]
pub(crate) struct Delivered {
    /// The ticket that was passed to [`LogProducer::produce`].
    pub(crate) ticket: usize,
    /// Partition and offset, or the reason for the failure.
    pub(crate) place: Result<(i32, i64), String>,
}

struct Deliveries {
    events: ClientEvents,
    delivered: mpsc::UnboundedSender<Delivered>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.events.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.events.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: usize) {
        let place = match result {
            Ok(record) => {
                self.events.0.is_well();
                Ok((record.partition(), record.offset()))
            }
            Err((error, _)) => {
                let why = error
                    .rdkafka_error_code()
                    .map_or_else(|| error.to_string(), |code| code.to_string());
                self.events.0.fails(why.clone());
                Err(why)
            }
        };
        // The receiver is dropped only at shutdown.
        let _ = self.delivered.send(Delivered { ticket, place });
    }
}

pub(crate) struct LogProducer {
    producer: ThreadedProducer<Deliveries>,
    topic: String,
    pub(crate) condition: LogCondition,
}

impl LogProducer {
    /// Connects when the first record is sent. The channel is unbounded, but it holds at most one
    /// report per record.
    pub(crate) fn new(
        options: &ClusterOptions,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Delivered>), Fault> {
        let (delivered, deliveries) = mpsc::unbounded_channel();
        let events = ClientEvents::default();
        let condition = events.0.clone();
        let timeout_ms = options.log_wait_ms.to_string();
        let own = [
            // With 0, each record becomes its own request, which costs a fifth of a core.
            ("linger.ms", "1"),
            ("message.timeout.ms", timeout_ms.as_str()),
            ("queue.buffering.max.messages", "200000"),
        ];
        // Duplicate records are stored once, so idempotence is not needed. An idempotent producer
        // fails permanently if the broker loses the end of its log, which the outbox is meant to
        // send again.
        let fixed = [("acks", "all"), ("enable.idempotence", "false")];
        let producer = super::client(options, &own, &fixed)
            .create_with_context(Deliveries { events, delivered })
            .map_err(|error| super::fault(options, &error, "; see cluster.kafka_properties"))?;
        Ok((
            Self {
                producer,
                topic: options.topic.clone(),
                condition,
            },
            deliveries,
        ))
    }

    /// Queues one record. Returns false if the queue is full; retry later.
    pub(crate) fn produce(
        &self,
        ticket: usize,
        key: &str,
        order_id: &str,
        source: &str,
        payload: &str,
    ) -> bool {
        let header = |key, value| Header {
            key,
            value: Some(value),
        };
        // CloudEvents 1.0, Kafka binding, binary mode.
        let headers = OwnedHeaders::new_with_capacity(5)
            .insert(header("ce_specversion", "1.0"))
            .insert(header("ce_type", CLAIM))
            .insert(header("ce_source", source))
            .insert(header("ce_id", order_id))
            .insert(header("content-type", "application/json"));
        let record = BaseRecord::with_opaque_to(&self.topic, ticket)
            .key(key)
            .payload(payload)
            .headers(headers);
        self.producer.send(record).is_ok()
    }

    /// Fetches the topic's metadata; success clears the condition.
    pub(crate) fn probe(&self, wait: Duration) {
        let asked = self
            .producer
            .client()
            .fetch_metadata(Some(&self.topic), wait);
        if asked.is_ok_and(|said| said.topics().iter().all(|topic| topic.error().is_none())) {
            self.condition.is_well();
        }
    }

    /// Waits for queued records to be delivered.
    pub(crate) fn flush(&self, wait: Duration) {
        // Undelivered records are still in the outbox.
        let _ = self.producer.flush(wait);
    }
}
