//! What hyper alone costs for connections of events that nothing happens on: one prepared event each.

use std::convert::Infallible;
use std::io::Write;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use crate::bare_server::bind;

const PING: Bytes = Bytes::from_static(
    b"event: ping\ndata: {\"timestamp\":1795258000123,\"tail\":{\"seq_num\":0,\"timestamp\":0}}\n\n",
);

/// Serves until standard input ends, so that it cannot outlive the process that started it.
pub fn serve() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    std::thread::spawn(|| {
        // Whether it ends well or not makes no difference.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    runtime.block_on(async {
        let listener = bind(([127, 0, 0, 1], 0).into())?;
        println!("{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        // On a worker, as every connection.
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A connection without it still works, only slower.
                let _ = stream.set_nodelay(true);
                let connection = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(events));
                // One that breaks is the client's affair.
                tokio::spawn(async move { connection.await.is_ok() });
            }
        })
        .await?;
        Ok(())
    })
}

async fn events(
    request: Request<hyper::body::Incoming>,
) -> Result<
    Response<StreamBody<impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>>>>,
    Infallible,
> {
    drop(request);
    let body = StreamBody::new(async_stream::stream! {
        yield Ok(Frame::data(PING));
        std::future::pending::<()>().await;
    });
    let mut response = Response::new(body);
    let events = hyper::header::HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, events);
    Ok(response)
}
