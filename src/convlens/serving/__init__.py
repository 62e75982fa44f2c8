"""Predictions over HTTP: one process, small batches made on the fly, the same bits for an image in any batch.

=============  ==============================================================================
`settings`     `ServeSettings`, the one record behind flags and server
`admission`    who is let in, and who would wait too long
`batching`     `Batcher`: a bounded queue, batches within a latency budget
`served`       `ServedModel`: a predictor made batch-invariant; hot reload behind a gate
`service`      what happens to one request
`application`  the HTTP interface (`create_app`)
`direct`       the connection: small predictions without a task of their own
`requests`     a request's body to pictures, with every limit
`running`      the process: sockets, signals, graceful drain
`route`        the server as a route of the export gate
=============  ==============================================================================
"""

from __future__ import annotations
