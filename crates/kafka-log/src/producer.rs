//! Writes records to the order log. Records are queued immediately and acknowledged later. Must not
//! keep records: those that fail stay in the outbox.

use std::time::Duration;

use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, config::RDKafkaLogLevel, error::KafkaError};
use seckill_cluster_codec::message::CLAIM;
use seckill_engine::Fault;
use tokio::sync::mpsc;

use crate::client::{ClientEvents, client, fault};
use crate::condition::LogCondition;
use crate::options::LogOptions;

/// The delivery report of a record.
#[derive(Debug)]
pub struct Delivered {
    /// The ticket that was passed to [`LogProducer::produce`].
    pub ticket: usize,
    /// Partition and offset, or the reason for the failure.
    pub place: Result<(i32, i64), String>,
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

pub struct LogProducer {
    producer: ThreadedProducer<Deliveries>,
    topic: String,
    pub condition: LogCondition,
}

impl LogProducer {
    /// Connects when the first record is sent. The channel is unbounded, but it holds at most one
    /// report per record.
    pub fn new(options: &LogOptions) -> Result<(Self, mpsc::UnboundedReceiver<Delivered>), Fault> {
        let (delivered, deliveries) = mpsc::unbounded_channel();
        let events = ClientEvents::default();
        let condition = events.0.clone();
        let timeout_ms = options.delivery_wait.as_millis().to_string();
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
        let producer = client(options, &own, &fixed)
            .create_with_context(Deliveries { events, delivered })
            .map_err(|error| fault(options, &error, "; see cluster.kafka_properties"))?;
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
    pub fn produce(
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
    pub fn probe(&self, wait: Duration) {
        let asked = self
            .producer
            .client()
            .fetch_metadata(Some(&self.topic), wait);
        if asked.is_ok_and(|said| said.topics().iter().all(|topic| topic.error().is_none())) {
            self.condition.is_well();
        }
    }

    /// Waits for queued records to be delivered.
    pub fn flush(&self, wait: Duration) {
        // Undelivered records are still in the outbox.
        let _ = self.producer.flush(wait);
    }
}
