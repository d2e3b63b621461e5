// The eight-point strip, tie, both bad and the axes: radio buttons that a digit presses too.

export function openStrips(root, changed) {
  const radios = (name) => [...root.querySelectorAll(`input[name="${CSS.escape(name)}"]`)];
  const chosen = (name) => radios(name).find((one) => one.checked)?.value ?? null;
  const axes = [...root.querySelectorAll("[data-strip^='axis-']")].map((one) => one.dataset.strip);

  function choose(name, value) {
    const radio = radios(name).find((one) => one.value === String(value));
    if (!radio || radio.disabled) return;
    radio.checked = true;
    changed(radio.getAttribute("aria-label") ?? radio.closest("label").textContent.trim());
  }

  // inside the strip of an axis, digits are about that axis
  function digit(number) {
    const axis = document.activeElement?.closest?.("[data-strip^='axis-']");
    choose(axis ? axis.dataset.strip : "strength", number);
  }

  for (const radio of root.querySelectorAll(".strip input, .verdict input")) {
    radio.addEventListener("change", () => changed(""));
    // after a click, arrow keys scroll the page instead of changing the answer
    radio.addEventListener("click", (event) => event.detail > 0 && radio.blur());
  }

  const actions = {};
  for (let number = 1; number <= 8; number += 1) actions[`strength_${number}`] = () => digit(number);
  for (const name of ["tie", "both_bad"]) {
    if (root.querySelector(`[data-action="${name}"]`)) actions[name] = () => choose("strength", name);
  }

  return {
    actions,
    value() {
      const said = chosen("strength");
      const value = {};
      if (said === "tie" || said === "both_bad") value.verdict = said;
      else if (said !== null) value.strength = Number(said);
      const filled = axes.filter((one) => chosen(one) !== null);
      if (filled.length) value.axes = Object.fromEntries(filled.map((one) => [one.slice(5), Number(chosen(one))]));
      return value;
    },
    restore(value) {
      const said = value.strength ?? value.verdict;
      for (const [name, one] of [["strength", said], ...Object.entries(value.axes ?? {}).map(([axis, at]) => [`axis-${axis}`, at])]) {
        const radio = radios(name).find((other) => other.value === String(one));
        if (radio) radio.checked = true;
      }
    },
  };
}
