// Draws what is in #data with plotly, and lets the slider choose the checkpoint that is shown.
"use strict";
(() => {
  const COLOURS = ["blue", "orange", "green", "red", "sky", "pink", "yellow"];
  // A marker and the character that stands for it in the legend.
  const MARKERS = [
    ["circle", "●"], ["square", "■"], ["diamond", "◆"], ["triangle-up", "▲"], ["cross", "✚"],
    ["star", "★"], ["triangle-down", "▼"],
  ];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const PLAIN = { displayModeBar: false, responsive: true };
  const PLAY = 900; // milliseconds for each checkpoint
  const data = JSON.parse(document.getElementById("data").textContent);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const mouse = matchMedia("(hover: hover)");
  const at = (run, part) => document.getElementById(`${run.id}-${part}`);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // What plotly writes into a hover label may hold tags of its own.
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const wrapped = (text) => (text.match(/.{1,60}(\s|$)|.{1,60}/gu) || [""]).map((line) => escaped(line.trim())).join("<br>");

  // Colour and marker of each of a way's groups; those without a place of their own are grey dots.
  function kinds(way) {
    return way.names.map((name, i) => {
      const rest = i === way.names.length - 1;
      const [marker, sign] = rest ? MARKERS[0] : MARKERS[(i + Math.floor(i / COLOURS.length)) % MARKERS.length];
      return { marker, sign, colour: rest ? "grey" : COLOURS[i % COLOURS.length] };
    });
  }

  function axis(more) {
    return {
      gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, tickcolor: colour("line"),
      automargin: true, fixedrange: true, ...more,
    };
  }

  function layout(more) {
    const family = getComputedStyle(document.body).fontFamily;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
      font: { color: colour("text"), size: 13, family },
      margin: { l: 48, r: 12, t: 28, b: 88 },
      legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)", itemclick: false, itemdoubleclick: false },
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("faint"), font: { color: colour("text"), family }, align: "left" },
      ...more,
    };
  }

  function line(curve, name, more) {
    return {
      type: "scatter", mode: "lines+markers", x: curve.steps, y: curve.values, name: escaped(name),
      line: { color: colour(name) }, hovertemplate: "step %{x}: %{y}<extra></extra>", connectgaps: false, ...more,
    };
  }

  // The value of a curve at a step as a large marker.
  function mark(curve, step, name, symbol, more, size = 15) {
    const place = curve.steps.indexOf(step);
    if (place < 0 || curve.values[place] === null) return [];
    return [{
      type: "scatter", mode: "markers", x: [step], y: [curve.values[place]], name,
      marker: { symbol, size: symbol.endsWith("open") ? 1.45 * size : size, color: symbol.endsWith("open") ? colour("text") : colour("orange"), line: { width: 1.5, color: colour("text") } },
      hoverinfo: "text", hovertext: [name], ...more,
    }];
  }

  function upright(step, more) {
    return {
      type: "line", xref: "x", yref: "paper", x0: step, x1: step, y0: 0, y1: 1, layer: "below",
      line: { color: colour("faint"), width: 1, ...more },
    };
  }

  const marksOf = (run) => [
    run.marks.pick === null ? null : upright(run.marks.pick, {}),
    run.marks.stop === null ? null : upright(run.marks.stop, { dash: "dash" }),
  ].filter(Boolean);

  const shapesOf = (run) => run.frames.length === 0 ? marksOf(run) :
    [...marksOf(run), upright(run.frames[run.shown].step, { dash: "dot", width: 2, color: colour("red") })];

  function drawCurve(run) {
    const traces = [], axes = {}, titles = [];
    const why = (mark) => [`${mark}<br>${wrapped(run.reason)}`];
    run.curves.forEach((curve, i) => {
      const name = i === 0 ? "" : `${i + 1}`, first = i === 0;
      const on = { xaxis: "x", yaxis: `y${name}` };
      if (curve.low) {
        // A band is drawn between gaps, as a polygon cannot have any.
        pieces(curve).forEach(([x, low, high]) => traces.push({
          type: "scatter", mode: "lines", x: [...x, ...x.toReversed()], y: [...high, ...low.toReversed()],
          fill: "toself", fillcolor: translucent(colour("blue")), line: { width: 0 }, hoverinfo: "skip", showlegend: false, ...on,
        }));
      }
      traces.push(line(curve, "", { ...on, showlegend: false, line: { color: colour("blue"), width: 2 }, marker: { size: 6 } }));
      traces.push(...mark(curve, run.marks.pick, `the pick, step ${run.marks.pick}`, "star", { ...on, showlegend: first, hovertext: why("the pick") }));
      traces.push(...mark(curve, run.marks.stop, `the stop, step ${run.marks.stop}`, "circle-open", { ...on, showlegend: first, hovertext: why("the stop") }));
      const top = run.curves.length === 1 ? [0, 1] : [[0.56, 1], [0, 0.44]][i];
      axes[`yaxis${name}`] = axis({ domain: top, anchor: "x" });
      titles.push({
        text: `<b>${escaped(curve.title)}</b>${curve.low ? ", 95 % interval" : ""}`, showarrow: false, xref: "paper", yref: "paper",
        x: 0, xanchor: "left", y: top[1], yanchor: "bottom", yshift: 3,
      });
    });
    if (run.frames.length) {
      traces.push({
        type: "scatter", mode: "lines", x: [null], y: [null], name: "the checkpoint shown below",
        line: { color: colour("red"), dash: "dot", width: 2 },
      });
    }
    Plotly.react(at(run, "curve"), traces, layout({
      ...axes, annotations: titles, shapes: shapesOf(run),
      xaxis: axis({ title: { text: "optimizer step" }, anchor: `y${run.curves.length > 1 ? 2 : ""}` }),
    }), PLAIN);
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
      line: { color: colour(names[i % 3]), dash: DASHES[i % 4], width: 2 }, marker: { symbol: MARKERS[i][0], size: 7 },
    }));
    Plotly.react(at(run, "supervised"), traces, layout({
      xaxis: axis({ title: { text: "optimizer step" } }), yaxis: axis({}), shapes: marksOf(run),
      annotations: [{ text: "<b>share of texts that are right</b>", showarrow: false, xref: "paper", yref: "paper", x: 0, xanchor: "left", y: 1, yanchor: "bottom", yshift: 3 }],
    }), PLAIN);
  }

  function drawOthers(run) {
    run.others.forEach((other, i) => {
      Plotly.react(at(run, `other-${i}`), [
        line(other, "", { line: { color: colour("blue"), width: 2 }, marker: { size: 5 } }),
        ...mark(other, other.pick, `picks step ${other.pick}`, "star", {}),
      ], layout({
        xaxis: axis({ nticks: 5 }), yaxis: axis({ nticks: 4 }), showlegend: false, margin: { l: 44, r: 10, t: 10, b: 28 },
        shapes: marksOf(run).slice(0, 1),
      }), PLAIN);
    });
  }

  function drawMap(run) {
    const frame = run.frames[run.shown], way = run.ways[run.way];
    const group = way.of[Math.min(run.shown, way.of.length - 1)], kind = kinds(way);
    const colours = kind.map((k) => colour(k.colour));
    const hover = group.map((g, i) => escaped(way.names[g]) + (run.words ? `<br>${wrapped(run.words[i])}` : ""));
    const trace = {
      type: "scatter", mode: "markers", x: frame.x, y: frame.y, ids: frame.x.map((_, i) => `${i}`),
      hoverinfo: "text", hovertext: hover,
      marker: {
        size: 7, color: group.map((g) => colours[g]), symbol: group.map((g) => kind[g].marker),
        opacity: group.map((g) => run.single === null || run.single === g ? 0.85 : 0.08),
        line: { width: 0.5, color: colour("edge") },
      },
    };
    const empty = { range: [-1060, 1060], showticklabels: false, ticks: "", showgrid: false, fixedrange: !mouse.matches };
    Plotly.react(at(run, "map"), [trace], layout({
      xaxis: axis(empty), yaxis: axis({ ...empty, scaleanchor: "x" }), showlegend: false, margin: { l: 4, r: 4, t: 4, b: 4 },
      dragmode: mouse.matches ? "zoom" : false, uirevision: "kept",
      shapes: [{ type: "rect", xref: "paper", yref: "paper", x0: 0, x1: 1, y0: 0, y1: 1, line: { color: colour("line"), width: 1 } }],
      transition: { duration: calm.matches ? 0 : 350, easing: "cubic-in-out" },
    }), PLAIN);
    at(run, "rest").textContent = way.rest;
    drawLegend(run, way, kind, group);
  }

  // A button for each group in use, which singles it out.
  function drawLegend(run, way, kind, group) {
    const counts = way.names.map(() => 0);
    group.forEach((g) => { counts[g] += 1; });
    const list = at(run, "legend");
    if (list.dataset.way !== `${run.way}`) {
      list.dataset.way = `${run.way}`;
      list.replaceChildren(...way.names.map((name, g) => {
        const item = document.createElement("li"), button = document.createElement("button"), swatch = document.createElement("span");
        swatch.className = "swatch";
        swatch.ariaHidden = "true";
        swatch.textContent = kind[g].sign;
        button.type = "button";
        button.append(swatch, document.createElement("bdi"));
        button.addEventListener("click", () => { run.single = run.single === g ? null : g; drawMap(run); });
        item.append(button);
        return item;
      }));
    }
    [...list.children].forEach((item, g) => {
      const button = item.firstChild;
      item.hidden = !way.of.some((groups) => groups.includes(g));
      button.ariaPressed = `${run.single === g}`;
      button.firstChild.style.color = colour(kind[g].colour);
      button.lastChild.textContent = `${way.names[g]}: ${counts[g]}`;
    });
  }

  function drawBars(run) {
    const frame = run.frames[run.shown], rows = frame.deaths.map((_, i) => i + 1);
    const longest = frame.deaths[frame.deaths.length - 1];
    const shape = (deaths) => ({ type: "scatter", mode: "lines", x: [...deaths], y: rows, hovertemplate: "row %{y} ends at distance %{x}<extra></extra>" });
    const traces = [
      { ...shape(frame.deaths), name: "the checkpoint shown", fill: "tozerox", fillcolor: translucent(colour("blue")), line: { color: colour("blue"), shape: "hv", width: 1.5 } },
    ];
    if (run.shown !== run.start) {
      traces.push({ ...shape(run.frames[run.start].deaths), name: `for comparison, step ${run.frames[run.start].step}`, hoverinfo: "skip", hovertemplate: null, line: { color: colour("orange"), shape: "hv", width: 2, dash: "dot" } });
    }
    Plotly.react(at(run, "bars"), traces, layout({
      xaxis: axis({ title: { text: "distance at which clusters join" }, range: [0, run.longest * 1.03] }),
      yaxis: axis({ title: { text: "clusters, the longest-lived on top" }, range: [0, rows.length + 1] }),
      margin: { l: 56, r: 12, t: 36, b: 44 }, showlegend: traces.length > 1,
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)", itemclick: false, itemdoubleclick: false },
      shapes: [{ type: "line", xref: "x", yref: "paper", x0: longest, x1: longest, y0: 0, y1: 1, line: { color: colour("faint"), width: 1.5, dash: "dash" } }],
    }), PLAIN);
  }

  function drawCompared() {
    if (!data.compared) return;
    const traces = data.compared.lines.flatMap((run, i) => {
      const ink = colour(COLOURS[i % COLOURS.length]);
      return [
        line(run, run.name, { line: { color: ink, dash: DASHES[Math.floor(i / COLOURS.length) % 4], width: 2 }, marker: { symbol: MARKERS[i % MARKERS.length][0], size: 6 } }),
        ...mark(run, run.pick, "pick", "star", { showlegend: false }, 10),
        ...mark(run, run.stop, "stop", "circle-open", { showlegend: false }, 10),
      ];
    });
    Plotly.react("compared-plot", traces, layout({ xaxis: axis({ title: { text: "optimizer step" } }), yaxis: axis({ title: { text: escaped(data.compared.by) } }) }), PLAIN);
  }

  // Shows a frame everywhere: pictures, marker and words.
  function show(run, place) {
    run.shown = Math.max(0, Math.min(run.frames.length - 1, place));
    const frame = run.frames[run.shown], slider = at(run, "slider");
    slider.value = run.shown;
    slider.setAttribute("aria-valuetext", frame.value);
    at(run, "value").textContent = `${frame.value} (${run.shown + 1} of ${run.frames.length})`;
    at(run, "map").ariaLabel = frame.map_alt;
    at(run, "bars").ariaLabel = frame.bars_alt;
    if (frame.shown) at(run, "shown").textContent = `Here it shows ${frame.shown} of their variance.`;
    at(run, "spread").textContent = frame.spread;
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
      }, PLAY);
    }
    button.ariaPressed = `${wanted}`;
    button.textContent = wanted ? "Pause" : "Play";
  }

  function prepare(run) {
    Object.assign(run, { shown: run.start, way: 0, single: null, timer: null });
    if (!run.frames.length) return;
    const cells = document.querySelectorAll(`#${run.id}-texts td.text`);
    run.words = cells.length ? [...cells].map((cell) => cell.textContent) : null;
    const step = (to) => { play(run, false); show(run, to); };
    at(run, "slider").addEventListener("input", (event) => step(Number(event.target.value)));
    at(run, "back").addEventListener("click", () => step(run.shown - 1));
    at(run, "next").addEventListener("click", () => step(run.shown + 1));
    at(run, "play").addEventListener("click", () => play(run, run.timer === null));
    at(run, "way").addEventListener("change", (event) => {
      Object.assign(run, { way: Number(event.target.value), single: null });
      drawMap(run);
    });
  }

  function drawRun(run) {
    drawCurve(run);
    drawSupervised(run);
    drawOthers(run);
    if (run.frames.length) show(run, run.shown);
  }

  function drawAll() {
    drawCompared();
    data.runs.forEach(drawRun);
  }

  // A link to a folded table unfolds it.
  function unfold() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) target.open = true;
  }

  data.runs.forEach(prepare);
  drawAll();
  unfold();
  addEventListener("hashchange", unfold);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", drawAll);
  document.documentElement.dataset.ready = "true";
})();
