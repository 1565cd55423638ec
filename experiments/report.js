"use strict";

// Light or dark: as the reader's system has it, until the button is pressed.
{
  const root = document.documentElement;
  const button = document.querySelector(".theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.style.colorScheme ? root.style.colorScheme === "dark" : system.matches);
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    root.style.colorScheme = dark() ? "light" : "dark";
    name();
  });
  system.addEventListener("change", name);
  name();
}

// Players: one frame number for all canvases of a player.
const players = [...document.querySelectorAll(".player")].map((player) => {
  const find = (selector) => player.querySelector(selector);
  const [button, slider, output, speed] = [".play", ".frame", ".at", ".speed"].map(find);
  const frames = Number(player.dataset.frames);
  const canvases = [...player.querySelectorAll("canvas")].map((canvas) => ({
    sheet: canvas.closest(".cells").querySelector(".sheet"),
    context: canvas.getContext("2d"),
    clip: Number(canvas.dataset.clip),
    frames: Number(canvas.dataset.frames),
    columns: Number(canvas.dataset.columns),
    width: canvas.width,
    height: canvas.height,
  }));
  let frame = 0;
  let timer = null;

  function show(wanted) {
    frame = ((wanted % frames) + frames) % frames;
    for (const c of canvases) {
      // A shorter clip waits at its end.
      const tile = c.clip * c.frames + Math.min(frame, c.frames - 1);
      const x = (tile % c.columns) * c.width;
      const y = Math.floor(tile / c.columns) * c.height;
      c.context.drawImage(c.sheet, x, y, c.width, c.height, 0, 0, c.width, c.height);
    }
    slider.value = frame;
    slider.setAttribute("aria-valuetext", `${frame + 1} of ${frames}`);
    output.textContent = `${frame + 1} / ${frames}`;
    player.style.setProperty("--at", frame / frames);
  }
  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => show(frame + 1), 1000 / (Number(player.dataset.fps) * Number(speed.value))) : null;
    button.textContent = on ? "❚❚ Pause" : "▶ Play";
    button.setAttribute("aria-pressed", on);
  }
  button.addEventListener("click", () => play(timer === null));
  slider.addEventListener("input", () => { play(false); show(Number(slider.value)); });
  speed.addEventListener("change", () => { if (timer !== null) play(true); });
  find(".slices").addEventListener("change", (event) => player.classList.toggle("no-slices", !event.target.checked));
  Promise.all([...player.querySelectorAll(".sheet")].map((sheet) => sheet.decode())).then(() => {
    show(0);
    player.dataset.ready = "yes";
  });
  return {
    player, speed,
    toggle: () => play(timer === null),
    step: (by) => { play(false); show(frame + by); },
    to: (wanted) => { play(false); show(wanted); },
    last: frames - 1,
    pace: () => { if (timer !== null) play(true); },
  };
});

// Keys go to the player that has the focus, else to the first in sight.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, .scroll, pre")) return;
  const inSight = ({ player }) => {
    const box = player.getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight;
  };
  const one = players.find(({ player }) => player.contains(event.target)) || players.find(inSight);
  if (!one) return;
  const pressed = event.target.closest("button, summary, a");
  const speeds = [...one.speed.options].map((option) => option.value);
  if (event.key === " " && !pressed) one.toggle();
  else if (event.key === "ArrowLeft") one.step(-1);
  else if (event.key === "ArrowRight") one.step(1);
  else if (event.key === "Home" && one.player.contains(event.target)) one.to(0);
  else if (event.key === "End" && one.player.contains(event.target)) one.to(one.last);
  else if (Number(event.key) >= 1 && Number(event.key) <= speeds.length) {
    one.speed.value = speeds[Number(event.key) - 1];
    one.pace();
  } else return;
  event.preventDefault();
});

// A choice shows one of the blocks beside it.
for (const select of document.querySelectorAll("select.choice")) {
  const blocks = [...select.closest(".chosen").querySelectorAll("[data-choice]")];
  const show = () => blocks.forEach((block) => { block.hidden = block.dataset.choice !== select.value; });
  select.addEventListener("change", show);
  show();
}

// Plots: the numbers of the point nearest to the pointer.
for (const figure of document.querySelectorAll(".plot")) {
  const svg = figure.querySelector(":scope > svg");
  const readout = figure.querySelector(".readout");
  let points = null;
  let dot = null;
  svg.addEventListener("pointermove", (event) => {
    points ??= [...svg.querySelectorAll("[data-values]")].flatMap((path) => {
      const places = path.getAttribute("d").match(/-?[\d.]+/g).map(Number);
      return path.dataset.values.split(" ").map((pair, i) => {
        const [x, y] = pair.split(",");
        return { at: [places[2 * i], places[2 * i + 1]], told: `${svg.dataset.x} ${x}: ${path.dataset.name} ${y}` };
      });
    });
    if (!points.length) return;
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const pointer = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    const far = ({ at }) => Math.hypot(at[0] - pointer[0], at[1] - pointer[1]);
    const nearest = points.reduce((best, point) => (far(point) < far(best) ? point : best));
    if (!dot) {
      dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      dot.setAttribute("class", "dot");
      dot.setAttribute("r", 6);
      svg.append(dot);
    }
    dot.setAttribute("cx", nearest.at[0]);
    dot.setAttribute("cy", nearest.at[1]);
    readout.textContent = nearest.told;
  });
  svg.addEventListener("pointerleave", () => {
    readout.textContent = "\u00a0";
    dot?.remove();
    dot = null;
  });
}
