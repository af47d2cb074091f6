"""Sixty-four small policies in one optimizer: a population of agents, each with its own learning rate.

    python examples/many_small_models.py    train them by policy gradients, and say which learning rates won

Reinforcement learning often trains many networks of some hundred parameters: a seed, a task or a setting each. One step
of one optimizer takes them all in a single launch. Each agent is a group, so it has its own learning rate. The weights
of all agents are slices of stacked arrays, so that one `einsum` plays them all; slices train where they lie.

Episodes end at different times. Agents that have no finished episode have None as a gradient: their moments and their
counts of steps stand still, so each agent gets the bits that it would have in an optimizer of its own.
"""

import numpy as np

import fastadam

AGENTS, INPUTS, HIDDEN, ACTIONS, EPISODES, STEPS = 64, 6, 8, 4, 32, 250
RATES = (0.0003, 0.003, 0.03, 0.3)  # sixteen agents each


def population(seed=0):
    """The stacked weights of all agents, float32."""
    rng = np.random.default_rng(seed)
    sizes = {"in": (INPUTS, HIDDEN), "in_bias": (HIDDEN,), "out": (HIDDEN, ACTIONS), "out_bias": (ACTIONS,)}
    return {name: 0.3 * rng.standard_normal((AGENTS, *size), np.float32) for name, size in sizes.items()}


def agent(stacked, number):
    """The arrays of one agent, by names of their own: slices, no copies."""
    return {f"{number}.{name}": array[number] for name, array in stacked.items()}


def optimizer(stacked, numbers=range(AGENTS)):
    groups = [{"params": agent(stacked, number), "lr": RATES[number % len(RATES)]} for number in numbers]
    return fastadam.Adam(groups)


def play(stacked, rng):
    """One batch of episodes of one decision each: stacked gradients of minus the expected reward, and mean rewards."""
    states = rng.standard_normal((AGENTS, EPISODES, INPUTS)).astype(np.float32)
    hidden = np.tanh(states @ stacked["in"] + stacked["in_bias"][:, None])
    logits = hidden @ stacked["out"] + stacked["out_bias"][:, None]
    policy = np.exp(logits - logits.max(axis=2, keepdims=True))
    policy /= policy.sum(axis=2, keepdims=True)
    # The action is drawn by Gumbel's trick. Right is the largest of the first inputs.
    actions = (np.log(policy) + rng.gumbel(size=policy.shape)).argmax(axis=2)
    rewards = (actions == states[..., :ACTIONS].argmax(axis=2)).astype(np.float32)
    advantages = rewards - rewards.mean(axis=1, keepdims=True)
    # REINFORCE: the gradient of -advantage * log(probability of the action).
    d_logits = (policy - np.eye(ACTIONS, dtype=np.float32)[actions]) * advantages[..., None] / EPISODES
    d_hidden = np.einsum("nea,nha->neh", d_logits, stacked["out"]) * (1 - hidden**2)
    return {
        "in": np.einsum("nei,neh->nih", states, d_hidden),
        "in_bias": d_hidden.sum(axis=1),
        "out": np.einsum("neh,nea->nha", hidden, d_logits),
        "out_bias": d_logits.sum(axis=1),
    }, rewards.mean(axis=1)


def train(stacked, opt, numbers=range(AGENTS), steps=STEPS, seed=1):
    """Train the agents `numbers`, which `opt` has; return the mean reward of each agent over the last 50 steps."""
    rng, rewards = np.random.default_rng(seed), []
    for _ in range(steps):
        grads, reward = play(stacked, rng)
        finished = rng.random(AGENTS) < 0.8
        of_agents = {}
        for number in numbers:
            gradients = agent(grads, number)
            of_agents |= gradients if finished[number] else dict.fromkeys(gradients)
        opt.step(of_agents)
        rewards.append(reward)
    return np.mean(rewards[-50:], axis=0)


def main():
    stacked = population()
    rewards = train(stacked, optimizer(stacked))
    print(f"{AGENTS} agents, {sum(array.size for array in stacked.values()):,} parameters, chance is {1 / ACTIONS:.2f}")
    for place, rate in enumerate(RATES):
        print(f"learning rate {rate:<7g} mean reward {rewards[place :: len(RATES)].mean():.2f}")
    best = rewards.argmax()
    print(f"best: agent {best} with {RATES[best % len(RATES)]:g}, {rewards[best]:.2f}")


if __name__ == "__main__":
    main()
