"""A deep Q-network learns to balance a pole on a cart.

    python examples/dqn.py             until it hardly ever falls, a minute or two
    python examples/dqn.py --quick     a short run, well above a random policy
    python examples/dqn.py --double    double Q-learning

After Mnih et al. 2015, doi 10.1038/nature14236: a memory of transitions, from which batches are drawn, and
a target network, which is the network of some steps ago. A tree never changes, so that keeping it is
`target = model`, and keeping the best network so far is `best = model`. With `--double` the network itself
chooses the action that the target network values: van Hasselt et al. 2015, arXiv 1509.06461.
"""

from __future__ import annotations

import argparse
import random
import time

import torch

import fluxlike as fl
from fluxlike.optional import optional

gymnasium = optional("gymnasium", "this example", install="'fluxlike[examples]'")

DISCOUNT, BATCH = 0.99, 128
EXPLORED, CHANCE = 5000, 0.05  # steps until actions are drawn at random with this probability only
FIRST, TRAINED, RENEWED, JUDGED = 1000, 2, 200, 2000  # steps before training, and between what follows it


def network():
    return fl.Chain(fl.Dense(4, 128, fl.relu), fl.Dense(128, 128, fl.relu), fl.Dense(128, 2))


class Memory:
    """All transitions: observation, action, reward, the next observation, and whether the pole fell."""

    def __init__(self, capacity):
        self.columns = (
            torch.empty(capacity, 4),
            torch.empty(capacity, dtype=torch.int64),
            torch.empty(capacity),
            torch.empty(capacity, 4),
            torch.empty(capacity),
        )
        self.size = 0

    def add(self, *transition):
        for column, value in zip(self.columns, transition, strict=True):
            column[self.size] = torch.as_tensor(value)
        self.size += 1

    def sample(self):
        rows = torch.randint(self.size, (BATCH,))
        return [column[rows] for column in self.columns]


def loss(model, target, batch, double):
    """The squared difference of Q(s, a) and r + γ max Q⁻(s′, ·), which is r alone where the pole fell."""
    observation, action, reward, following, fell = batch
    with torch.no_grad():
        chosen = (model if double else target)(following).argmax(1, keepdim=True)
        value = target(following).gather(1, chosen).squeeze(1)
    q = model(observation).gather(1, action.unsqueeze(1)).squeeze(1)
    return fl.losses.mse(q, reward + DISCOUNT * (1 - fell) * value)


@fl.jit  # nothing is donated, since `target` and `best` may be the model itself
def train_step(model, state, target, batch, double):
    grads = fl.gradient(loss, model, target, batch, double)
    return fl.update(state, model, grads)


def greedy(model):
    """The policy that takes the action of the largest value."""

    def act(observation):
        with torch.no_grad():
            return model(torch.from_numpy(observation)).argmax().item()

    return act


def mean_return(policy, seed, episodes):
    """For how many steps the pole stays up, in the mean; an episode ends after 500."""
    total = 0.0
    with gymnasium.make("CartPole-v1") as env:
        for episode in range(episodes):
            observation, _ = env.reset(seed=seed + episode)
            ended = False
            while not ended:
                observation, reward, fell, late, _ = env.step(policy(observation))
                total, ended = total + reward, fell or late
    return total / episodes


def train(steps, double, seed):
    """The best network of those that are judged on the way, as in the paper."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    model = target = best = network()
    highest = 0.0
    state = fl.setup(fl.OptimiserChain(fl.ClipGlobalNorm(10.0), fl.Adam(1e-3)), model)
    memory = Memory(steps)
    with gymnasium.make("CartPole-v1") as env:
        observation, _ = env.reset(seed=seed)
        for step in range(1, steps + 1):
            at_random = chance.random() < max(CHANCE, 1 - step / EXPLORED)
            action = chance.randrange(2) if at_random else greedy(model)(observation)
            following, reward, fell, late, _ = env.step(action)
            memory.add(observation, action, reward, following, fell)
            observation = env.reset()[0] if fell or late else following
            if step > FIRST and step % TRAINED == 0:
                model, state = train_step(model, state, target, memory.sample(), double)
            if step % RENEWED == 0:
                target = model
            if step % JUDGED == 0:
                score = mean_return(greedy(model), 10_000, 10)
                print(f"step {step:5}: mean return {score:.0f}")
                if score > highest:
                    best, highest = model, score
                if highest == 500:
                    break
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run")
    parser.add_argument("--double", action="store_true", help="double Q-learning")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    steps, goal = (8000, 80) if options.quick else (80_000, 400)

    start = time.perf_counter()
    best = train(steps, options.double, options.seed)
    chance = random.Random(options.seed)
    drawn = mean_return(lambda observation: chance.randrange(2), 20_000, 20)
    score = mean_return(greedy(best), 20_000, 20)
    print(f"mean return of 20 other episodes: {score:.1f}, of random actions {drawn:.1f}")
    print(f"{time.perf_counter() - start:.0f} s")
    if score < goal:
        raise SystemExit(f"expected a mean return of at least {goal}")


if __name__ == "__main__":
    main()
