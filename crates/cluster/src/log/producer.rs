//! Writes records to the order log. All is handed over at once and acknowledged later; nothing is kept here.

use std::time::Duration;

use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, config::RDKafkaLogLevel, error::KafkaError};
use seckill_engine::Fault;
use tokio::sync::mpsc;

use super::{LogCondition, Words};
use crate::codec::message::CLAIM;
use crate::options::ClusterOptions;

/// What became of a record: where it lies, or why it does not.
#[derive(Debug)]
pub(crate) struct Delivered {
    /// The number that it was handed over with.
    pub(crate) ticket: usize,
    pub(crate) place: Result<(i32, i64), String>,
}

struct Deliveries {
    words: Words,
    delivered: mpsc::UnboundedSender<Delivered>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.words.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.words.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: usize) {
        let place = match result {
            Ok(record) => {
                self.words.0.is_well();
                Ok((record.partition(), record.offset()))
            }
            Err((error, _)) => {
                let why = error
                    .rdkafka_error_code()
                    .map_or_else(|| error.to_string(), |code| code.to_string());
                self.words.0.fails(why.clone());
                Err(why)
            }
        };
        // Whoever waited for it is gone when the process ends.
        let _ = self.delivered.send(Delivered { ticket, place });
    }
}

/// The writing end of the log.
pub(crate) struct LogProducer {
    producer: ThreadedProducer<Deliveries>,
    topic: String,
    pub(crate) condition: LogCondition,
}

impl LogProducer {
    /// Nothing is connected before the first record. As many acknowledgements can be on their way as records.
    pub(crate) fn new(
        options: &ClusterOptions,
    ) -> Result<(Self, mpsc::UnboundedReceiver<Delivered>), Fault> {
        let (delivered, deliveries) = mpsc::unbounded_channel();
        let words = Words::default();
        let condition = words.0.clone();
        let timeout_ms = options.log_wait_ms.to_string();
        let own = [
            // At 0 each record is a request of its own, which costs a fifth of a core.
            ("linger.ms", "1"),
            ("message.timeout.ms", timeout_ms.as_str()),
            ("queue.buffering.max.messages", "200000"),
        ];
        // A record that comes twice is stored once. An idempotent producer gives up for ever where the broker has lost the end
        // of its log, and the outbox is there to send just that again.
        let fixed = [("acks", "all"), ("enable.idempotence", "false")];
        let producer = super::client(options, &own, &fixed)
            .create_with_context(Deliveries { words, delivered })
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

    /// Hands one record over. False where the queue is full: try again later.
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

    /// Asks the broker for the topic; an answer ends the trouble.
    pub(crate) fn probe(&self, wait: Duration) {
        let asked = self
            .producer
            .client()
            .fetch_metadata(Some(&self.topic), wait);
        if asked.is_ok_and(|said| said.topics().iter().all(|topic| topic.error().is_none())) {
            self.condition.is_well();
        }
    }

    /// Waits for what was handed over.
    pub(crate) fn flush(&self, wait: Duration) {
        // What is left is in the outbox still.
        let _ = self.producer.flush(wait);
    }
}
