"""Web pages and the report over explain's records: the same JavaScript modules draw both.

==============  ============================================================================
`payload`       records → JSON values; arrays as bytes with their range
`run_record`    everything that the report shows about one run
`report`        one HTML file with records, modules, styles and charts inside
`bundle`        the ES modules of ``static/js`` as one script
==============  ============================================================================

Adding a picture: write ``static/js/NAME.js`` that exports ``render(record) → HTMLElement``, give it a section
in ``static/js/report.js`` (or a page of the explorer), and put its record together in `run_record`.
"""

from __future__ import annotations

from convlens.explorer.report import write_report

__all__ = ["write_report"]
