// Draws the data in #data with plotly. The slider selects the step shown.
"use strict";
(() => {
  const COLORS = ["blue", "orange", "green", "red", "sky", "pink", "yellow"];
  // A marker and its character in the legend.
  const MARKERS = [
    ["circle", "●"], ["square", "■"], ["diamond", "◆"], ["triangle-up", "▲"], ["cross", "✚"],
    ["star", "★"], ["triangle-down", "▼"],
  ];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  // Lines of other candidates; page.css has the same ones for the legend.
  const CANDIDATES = [["green", "dash"], ["pink", "dot"], ["edge", "dashdot"], ["orange", "dash"], ["sky", "dot"], ["text", "dashdot"]];
  const OPTIONS = { displayModeBar: false, responsive: true };
  const PLAY_INTERVAL = 900; // milliseconds per step
  const data = JSON.parse(document.getElementById("data").textContent);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const mouse = matchMedia("(hover: hover)");
  const at = (run, part) => document.getElementById(`${run.id}-${part}`);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // plotly interprets tags in hover labels.
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const wrapped = (text) => (text.match(/.{1,60}(\s|$)|.{1,60}/gu) || [""]).map((line) => escaped(line.trim())).join("<br>");

  // Color and marker of each group; the last one, of all other texts, is gray dots.
  function stylesOf(grouping) {
    return grouping.names.map((name, i) => {
      const rest = i === grouping.names.length - 1;
      const [marker, sign] = rest ? MARKERS[0] : MARKERS[(i + Math.floor(i / COLORS.length)) % MARKERS.length];
      return { marker, sign, color: rest ? "grey" : COLORS[i % COLORS.length] };
    });
  }

  function axis(more) {
    return {
      gridcolor: color("line"), linecolor: color("line"), zeroline: false, tickcolor: color("line"),
      automargin: true, fixedrange: true, ...more,
    };
  }

  function layout(more) {
    const family = getComputedStyle(document.body).fontFamily;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
      font: { color: color("text"), size: 13, family },
      margin: { l: 48, r: 12, t: 28, b: 88 },
      legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)", itemclick: false, itemdoubleclick: false },
      hoverlabel: { bgcolor: color("card"), bordercolor: color("faint"), font: { color: color("text"), family }, align: "left" },
      ...more,
    };
  }

  function line(curve, name, more) {
    return {
      type: "scatter", mode: "lines+markers", x: curve.steps, y: curve.values, name: escaped(name),
      line: { color: color(name) }, hovertemplate: "step %{x}: %{y}<extra></extra>", connectgaps: false, ...more,
    };
  }

  // What a line's hover labels say beside step and score: what each point is of.
  const hoverOf = (names) => names ? { text: names.map(escaped), hovertemplate: "step %{x}: %{y}<br>%{text}<extra></extra>" } : {};

  // A large marker at the value of a curve at a step.
  function mark(curve, step, name, symbol, more, size = 15) {
    const index = curve.steps.indexOf(step);
    if (index < 0 || curve.values[index] === null) return [];
    const open = symbol.endsWith("open");
    return [{
      type: "scatter", mode: "markers", x: [step], y: [curve.values[index]], name,
      marker: { symbol, size: open ? 1.45 * size : size, color: color(open ? "text" : "orange"), line: { width: 1.5, color: color("text") } },
      hoverinfo: "text", hovertext: [name], ...more,
    }];
  }

  function verticalLine(step, more) {
    return {
      type: "line", xref: "x", yref: "paper", x0: step, x1: step, y0: 0, y1: 1, layer: "below",
      line: { color: color("faint"), width: 1, ...more },
    };
  }

  const marksOf = (run) => [
    run.marks.pick === null ? null : verticalLine(run.marks.pick, {}),
    run.marks.stop === null ? null : verticalLine(run.marks.stop, { dash: "dash" }),
  ].filter(Boolean);

  const shapesOf = (run) => run.frames.length === 0 ? marksOf(run) :
    [...marksOf(run), verticalLine(run.frames[run.shown].step, { dash: "dot", width: 2, color: color("red") })];

  // The recorded scores, one panel each, the deciding one on top.
  function drawCurve(run) {
    const traces = [], axes = {}, titles = [], count = run.curves.length;
    const kept = run.kept ? `, ${run.kept}` : "";
    const reason = (name) => [`${name}<br>${wrapped(run.reason)}`];
    run.curves.forEach((curve, i) => {
      const suffix = i === 0 ? "" : `${i + 1}`, first = i === 0;
      const on = { xaxis: "x", yaxis: `y${suffix}` };
      if (curve.low) {
        // A band per piece, since a polygon can't have gaps.
        pieces(curve).forEach(([x, low, high]) => traces.push({
          type: "scatter", mode: "lines", x: [...x, ...x.toReversed()], y: [...high, ...low.toReversed()],
          fill: "toself", fillcolor: translucent(color("blue")), line: { width: 0 }, hoverinfo: "skip", showlegend: false, ...on,
        }));
      }
      curve.others.forEach((other, j) => {
        const [ink, dash] = CANDIDATES[j % CANDIDATES.length];
        traces.push(line({ steps: curve.steps, values: other.values }, other.name, {
          ...on, showlegend: false, line: { color: color(ink), dash, width: 1.5 }, marker: { size: 3.5 },
          ...hoverOf(curve.steps.map(() => other.name)),
        }));
      });
      traces.push(line(curve, "", { ...on, showlegend: false, line: { color: color("blue"), width: curve.others.length ? 3 : 2 }, marker: { size: 6 }, ...hoverOf(curve.weights) }));
      traces.push(...mark(curve, run.marks.pick, `the pick, step ${run.marks.pick}${run.kept ? ", an average" : ""}`, "star", { ...on, showlegend: first, hovertext: reason(`the pick${escaped(kept)}`) }));
      traces.push(...mark(curve, run.marks.stop, `the stop, step ${run.marks.stop}`, "circle-open", { ...on, showlegend: first, hovertext: reason("the stop") }));
      const domain = panel(i, count);
      axes[`yaxis${suffix}`] = axis({ domain, anchor: "x", nticks: count > 2 ? 4 : 6 });
      titles.push({
        text: `<b>${escaped(curve.name)}</b>${curve.decides ? " (decides)" : ""}${curve.low ? ", 95 % interval" : ""}`, showarrow: false,
        xref: "paper", yref: "paper", x: 0, xanchor: "left", y: domain[1], yanchor: "bottom", yshift: 3,
      });
    });
    if (run.frames.length) {
      traces.push({
        type: "scatter", mode: "lines", x: [null], y: [null], name: "the step shown below",
        line: { color: color("red"), dash: "dot", width: 2 },
      });
    }
    Plotly.react(at(run, "curve"), traces, layout({
      ...axes, annotations: titles, shapes: shapesOf(run),
      xaxis: axis({ title: { text: "optimizer step" }, anchor: `y${count > 1 ? count : ""}` }),
    }), OPTIONS);
  }

  // Lower and upper end of the i-th of count panels, from the top, with room for a title above each.
  function panel(i, count) {
    const gap = 0.12 / Math.max(1, count - 1), height = count > 1 ? (1 - 0.12) / count : 1;
    const top = 1 - i * (height + gap);
    return [Math.max(0, top - height), top];
  }

  // The parts of a curve that have an interval: [[steps, low, high], ...].
  function pieces(curve) {
    const found = [];
    let open = null;
    curve.steps.forEach((step, i) => {
      if (curve.low[i] === null || curve.high[i] === null) { open = null; return; }
      if (open === null) found.push(open = [[], [], []]);
      [step, curve.low[i], curve.high[i]].forEach((value, j) => open[j].push(value));
    });
    return found;
  }

  function translucent(hex) {
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return `rgba(${r},${g},${b},0.22)`;
  }

  function drawSupervised(run) {
    if (!run.supervised.length) return;
    const names = ["orange", "green", "pink"];
    const traces = run.supervised.map((curve, i) => line(curve, curve.name, {
      line: { color: color(names[i % 3]), dash: DASHES[i % 4], width: 2 }, marker: { symbol: MARKERS[i][0], size: 7 },
    }));
    Plotly.react(at(run, "supervised"), traces, layout({
      xaxis: axis({ title: { text: "optimizer step" } }), yaxis: axis({}), shapes: marksOf(run),
      annotations: [{ text: "<b>agreement with given labels</b>", showarrow: false, xref: "paper", yref: "paper", x: 0, xanchor: "left", y: 1, yanchor: "bottom", yshift: 3 }],
    }), OPTIONS);
  }

  function drawCriteria(run) {
    run.criteria.forEach((one, i) => {
      Plotly.react(at(run, `criterion-${i}`), [
        line(one, "", { line: { color: color("blue"), width: 2 }, marker: { size: 5 } }),
        ...mark(one, one.pick, `picks step ${one.pick}`, "star", {}),
      ], layout({
        xaxis: axis({ nticks: 5 }), yaxis: axis({ nticks: 4 }), showlegend: false, margin: { l: 44, r: 10, t: 10, b: 28 },
        shapes: marksOf(run).slice(0, 1),
      }), OPTIONS);
    });
  }

  function drawMap(run) {
    const frame = run.frames[run.shown], grouping = run.groupings[run.grouping];
    const groups = grouping.indices[Math.min(run.shown, grouping.indices.length - 1)], styles = stylesOf(grouping);
    const colors = styles.map((style) => color(style.color));
    const hover = groups.map((g, i) => escaped(grouping.names[g]) + (run.words ? `<br>${wrapped(run.words[i])}` : ""));
    const trace = {
      type: "scatter", mode: "markers", x: frame.x, y: frame.y, ids: frame.x.map((_, i) => `${i}`),
      hoverinfo: "text", hovertext: hover,
      marker: {
        size: 7, color: groups.map((g) => colors[g]), symbol: groups.map((g) => styles[g].marker),
        opacity: groups.map((g) => run.highlighted === null || run.highlighted === g ? 0.85 : 0.08),
        line: { width: 0.5, color: color("edge") },
      },
    };
    const empty = { range: [-1060, 1060], showticklabels: false, ticks: "", showgrid: false, fixedrange: !mouse.matches };
    Plotly.react(at(run, "map"), [trace], layout({
      xaxis: axis(empty), yaxis: axis({ ...empty, scaleanchor: "x" }), showlegend: false, margin: { l: 4, r: 4, t: 4, b: 4 },
      dragmode: mouse.matches ? "zoom" : false, uirevision: "kept",
      shapes: [{ type: "rect", xref: "paper", yref: "paper", x0: 0, x1: 1, y0: 0, y1: 1, line: { color: color("line"), width: 1 } }],
      transition: { duration: calm.matches ? 0 : 350, easing: "cubic-in-out" },
    }), OPTIONS);
    at(run, "note").textContent = grouping.note;
    drawLegend(run, grouping, styles, groups);
  }

  // A button for each group in use, which highlights it.
  function drawLegend(run, grouping, styles, groups) {
    const counts = grouping.names.map(() => 0);
    groups.forEach((g) => { counts[g] += 1; });
    const list = at(run, "legend");
    if (list.dataset.grouping !== `${run.grouping}`) {
      list.dataset.grouping = `${run.grouping}`;
      list.replaceChildren(...grouping.names.map((name, g) => {
        const item = document.createElement("li"), button = document.createElement("button"), swatch = document.createElement("span");
        swatch.className = "swatch";
        swatch.ariaHidden = "true";
        swatch.textContent = styles[g].sign;
        button.type = "button";
        button.append(swatch, document.createElement("bdi"));
        button.addEventListener("click", () => { run.highlighted = run.highlighted === g ? null : g; drawMap(run); });
        item.append(button);
        return item;
      }));
    }
    [...list.children].forEach((item, g) => {
      const button = item.firstChild;
      item.hidden = !grouping.indices.some((frame) => frame.includes(g));
      button.ariaPressed = `${run.highlighted === g}`;
      button.firstChild.style.color = color(styles[g].color);
      button.lastChild.textContent = `${grouping.names[g]}: ${counts[g]}`;
    });
  }

  function drawBars(run) {
    const frame = run.frames[run.shown], rows = frame.deaths.map((_, i) => i + 1);
    const longest = frame.deaths[frame.deaths.length - 1];
    const shape = (deaths) => ({ type: "scatter", mode: "lines", x: [...deaths], y: rows, hovertemplate: "row %{y} ends at distance %{x}<extra></extra>" });
    const traces = [
      { ...shape(frame.deaths), name: "the step shown", fill: "tozerox", fillcolor: translucent(color("blue")), line: { color: color("blue"), shape: "hv", width: 1.5 } },
    ];
    if (run.shown !== run.start) {
      traces.push({ ...shape(run.frames[run.start].deaths), name: `for comparison, step ${run.frames[run.start].step}`, hoverinfo: "skip", hovertemplate: null, line: { color: color("orange"), shape: "hv", width: 2, dash: "dot" } });
    }
    Plotly.react(at(run, "bars"), traces, layout({
      xaxis: axis({ title: { text: "distance at which clusters join" }, range: [0, run.longest * 1.03] }),
      yaxis: axis({ title: { text: "clusters, longest row on top" }, range: [0, rows.length + 1] }),
      margin: { l: 56, r: 12, t: 36, b: 44 }, showlegend: traces.length > 1,
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)", itemclick: false, itemdoubleclick: false },
      shapes: [{ type: "line", xref: "x", yref: "paper", x0: longest, x1: longest, y0: 0, y1: 1, line: { color: color("faint"), width: 1.5, dash: "dash" } }],
    }), OPTIONS);
  }

  function drawCompared() {
    if (!data.comparison) return;
    const traces = data.comparison.lines.flatMap((run, i) => {
      const ink = color(COLORS[i % COLORS.length]);
      return [
        line(run, run.name, { line: { color: ink, dash: DASHES[Math.floor(i / COLORS.length) % 4], width: 2 }, marker: { symbol: MARKERS[i % MARKERS.length][0], size: 6 } }),
        ...mark(run, run.pick, "pick", "star", { showlegend: false }, 10),
        ...mark(run, run.stop, "stop", "circle-open", { showlegend: false }, 10),
      ];
    });
    Plotly.react("compared-plot", traces, layout({ xaxis: axis({ title: { text: "optimizer step" } }), yaxis: axis({ title: { text: escaped(data.comparison.score_name) } }) }), OPTIONS);
  }

  // Shows a frame in all figures, the slider and the captions.
  function show(run, place) {
    run.shown = Math.max(0, Math.min(run.frames.length - 1, place));
    const frame = run.frames[run.shown], slider = at(run, "slider");
    slider.value = run.shown;
    slider.setAttribute("aria-valuetext", frame.value);
    at(run, "value").textContent = `${frame.value} (${run.shown + 1} of ${run.frames.length})`;
    at(run, "map").ariaLabel = frame.map_alt;
    at(run, "bars").ariaLabel = frame.bars_alt;
    if (frame.explained) at(run, "explained").textContent = `Here it shows ${frame.explained} of their variance.`;
    at(run, "separability").textContent = frame.separability;
    drawMap(run);
    drawBars(run);
    if (at(run, "curve").data) Plotly.relayout(at(run, "curve"), { shapes: shapesOf(run) });
  }

  function play(run, wanted) {
    clearInterval(run.timer);
    run.timer = null;
    const button = at(run, "play");
    if (wanted) {
      if (run.shown === run.frames.length - 1) show(run, 0);
      run.timer = setInterval(() => {
        show(run, run.shown + 1);
        if (run.shown === run.frames.length - 1) play(run, false);
      }, PLAY_INTERVAL);
    }
    button.ariaPressed = `${wanted}`;
    button.textContent = wanted ? "Pause" : "Play";
  }

  function prepare(run) {
    Object.assign(run, { shown: run.start, grouping: 0, highlighted: null, timer: null });
    if (!run.frames.length) return;
    const cells = document.querySelectorAll(`#${run.id}-texts td.text`);
    run.words = cells.length ? [...cells].map((cell) => cell.textContent) : null;
    const step = (to) => { play(run, false); show(run, to); };
    at(run, "slider").addEventListener("input", (event) => step(Number(event.target.value)));
    at(run, "back").addEventListener("click", () => step(run.shown - 1));
    at(run, "next").addEventListener("click", () => step(run.shown + 1));
    at(run, "play").addEventListener("click", () => play(run, run.timer === null));
    at(run, "grouping").addEventListener("change", (event) => {
      Object.assign(run, { grouping: Number(event.target.value), highlighted: null });
      drawMap(run);
    });
  }

  function drawRun(run) {
    drawCurve(run);
    drawSupervised(run);
    drawCriteria(run);
    if (run.frames.length) show(run, run.shown);
  }

  function drawAll() {
    drawCompared();
    data.runs.forEach(drawRun);
  }

  // A link to a closed table opens it.
  function openTarget() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) target.open = true;
  }

  data.runs.forEach(prepare);
  drawAll();
  openTarget();
  addEventListener("hashchange", openTarget);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", drawAll);
  document.documentElement.dataset.ready = "true";
})();
